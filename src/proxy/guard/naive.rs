//! The rules of the guard, read with everything at hand and no thought of speed: what it is held
//! against.
#![allow(clippy::result_unit_err)]

/// How large things may be.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A head, bytes.
    pub head: usize,
    /// Fields of a head, and of the trailers.
    pub fields: usize,
    /// The extensions of a body's chunks, bytes.
    pub extensions: usize,
    /// The trailers of a body, bytes.
    pub trailers: usize,
}

enum Body {
    None,
    Length(u64),
    Chunked,
}

/// Where the messages end, and whether there is one that must be refused.
pub fn messages(bytes: &[u8], rules: Rules) -> (Vec<usize>, bool) {
    let (mut ends, mut at) = (Vec::new(), 0);
    loop {
        match message(&bytes[at..], rules) {
            Err(()) => return (ends, true),
            Ok(None) => return (ends, false),
            Ok(Some(length)) => {
                at += length;
                ends.push(at);
            }
        }
    }
}

/// Where the message at the beginning ends; `None` if it is not complete.
fn message(bytes: &[u8], rules: Rules) -> Result<Option<usize>, ()> {
    let (mut at, mut lines) = (0, Vec::new());
    loop {
        let Some(lf) = bytes[at..].iter().position(|&byte| byte == b'\n') else {
            let text = if lines.is_empty() { at } else { usize::MAX };
            let hopeless = bytes
                .get(text)
                .is_some_and(|b| !token(&[*b]) && *b != b'\r');
            let cr = bytes[at..].iter().position(|&byte| byte == b'\r');
            let bare_cr = cr.is_some_and(|cr| at + cr + 1 < bytes.len());
            return if bytes.len() >= rules.head || hopeless || bare_cr {
                Err(())
            } else {
                Ok(None)
            };
        };
        if at + lf >= rules.head {
            return Err(());
        }
        let line = bytes[at..at + lf].strip_suffix(b"\r").ok_or(())?;
        let leading = at == 0 && line.is_empty();
        at += lf + 1;
        if leading {
            continue;
        }
        if lines.is_empty() {
            request_line(line)?;
        } else if line.is_empty() {
            break;
        } else {
            field(line)?;
        }
        lines.push(line);
        if lines.len() > rules.fields + 1 {
            return Err(());
        }
        framing(&lines, false)?;
    }
    match framing(&lines, true)? {
        Body::None => Ok(Some(at)),
        Body::Length(length) => {
            let end = at as u64 + length;
            Ok((end <= bytes.len() as u64).then_some(end as usize))
        }
        Body::Chunked => Ok(chunks(&bytes[at..], rules)?.map(|length| at + length)),
    }
}

fn token(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

fn text(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == b'\t' || b >= b' ' && b != 0x7f)
}

fn request_line(line: &[u8]) -> Result<(), ()> {
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let [method, target, version] = words[..] else {
        return Err(());
    };
    let target_is_fine =
        !target.is_empty() && target.iter().all(|b| b.is_ascii_graphic() && *b != b'#');
    let version_is_fine = version == b"HTTP/1.1" || version == b"HTTP/1.0";
    let fine = token(method) && method.len() <= 32 && target_is_fine && version_is_fine;
    fine.then_some(()).ok_or(())
}

fn field(line: &[u8]) -> Result<(), ()> {
    let colon = line.iter().position(|&byte| byte == b':').ok_or(())?;
    (token(&line[..colon]) && text(&line[colon + 1..]))
        .then_some(())
        .ok_or(())
}

fn framing(lines: &[&[u8]], complete: bool) -> Result<Body, ()> {
    let values = |wanted: &str| -> Vec<String> {
        lines[1..]
            .iter()
            .filter_map(|line| {
                let line = String::from_utf8_lossy(line).into_owned();
                let (name, value) = line.split_once(':')?;
                let value = value.trim_matches([' ', '\t']).to_ascii_lowercase();
                name.eq_ignore_ascii_case(wanted).then_some(value)
            })
            .collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let http10 = lines[0].ends_with(b"0");
    if values("host").len() > 1 || lengths.len() > 1 || codings.len() > 1 {
        return Err(());
    }
    let length = match lengths.first() {
        None => 0,
        Some(length) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            u64::try_from(length.parse::<i64>().map_err(drop)?).map_err(drop)?
        }
        Some(_) => return Err(()),
    };
    match codings.first().map(String::as_str) {
        None if length == 0 => Ok(Body::None),
        None => Ok(Body::Length(length)),
        Some("chunked") if complete && (http10 || !lengths.is_empty()) => Err(()),
        Some("chunked") => Ok(Body::Chunked),
        Some(_) => Err(()),
    }
}

fn chunks(bytes: &[u8], rules: Rules) -> Result<Option<usize>, ()> {
    let (mut at, mut extensions) = (0, 0);
    loop {
        let Some(lf) = bytes[at..].iter().position(|&byte| byte == b'\n') else {
            extensions += partial_size(&bytes[at..])?;
            return (extensions <= rules.extensions).then_some(None).ok_or(());
        };
        let line = bytes[at..at + lf].strip_suffix(b"\r").ok_or(())?;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        let size = std::str::from_utf8(size).map_err(drop)?;
        extensions += extension.len();
        if size.len() > 16 || extensions > rules.extensions || !is_extension(extension) {
            return Err(());
        }
        let size = i64::from_str_radix(size, 16).map_err(drop)? as u64;
        at += lf + 1;
        if size == 0 {
            break;
        }
        let left = (bytes.len() - at) as u64;
        let end = bytes
            .get(at + size.min(left) as usize..)
            .unwrap_or_default();
        if left < size + 2 {
            let fine = left <= size || end == b"\r";
            return if fine { Ok(None) } else { Err(()) };
        }
        if !end.starts_with(b"\r\n") {
            return Err(());
        }
        at += size as usize + 2;
    }
    let start = at;
    for fields in 0.. {
        let rest = &bytes[at..];
        let Some(lf) = rest.iter().position(|&byte| byte == b'\n') else {
            let cr = rest.iter().position(|&byte| byte == b'\r');
            let fine =
                cr.is_none_or(|cr| cr + 1 == rest.len()) && bytes.len() - start <= rules.trailers;
            return if fine { Ok(None) } else { Err(()) };
        };
        let line = rest[..lf].strip_suffix(b"\r").ok_or(())?;
        at += lf + 1;
        if at - start > rules.trailers {
            return Err(());
        }
        if line.is_empty() {
            return Ok(Some(at));
        }
        field(line)?;
        let name = line.split(|&b| b == b':').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let never = "content-length transfer-encoding host connection trailer";
        if fields == rules.fields || never.split(' ').any(|never| never == name) {
            return Err(());
        }
    }
    Ok(None)
}

/// Whether anything could still become of a line with a size that has no end yet; how much of it is
/// an extension.
fn partial_size(line: &[u8]) -> Result<usize, ()> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, rest) = line.split_at(digits);
    let size = std::str::from_utf8(size).map_err(drop)?;
    let too_large = size.len() > 16 || (!size.is_empty() && i64::from_str_radix(size, 16).is_err());
    if too_large || (size.is_empty() && !rest.is_empty()) {
        return Err(());
    }
    // With the shortest end that could be meant.
    let ends = ["", "x", "\"", "x\"", "=x", ";x"];
    let whole = rest.strip_suffix(b"\r").unwrap_or(rest);
    let ends = if whole.len() < rest.len() {
        &ends[..1]
    } else {
        &ends[..]
    };
    ends.iter()
        .any(|end| is_extension(&[whole, end.as_bytes()].concat()))
        .then_some(whole.len())
        .ok_or(())
}

/// `*( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )`, and BWS behind one.
fn is_extension(mut rest: &[u8]) -> bool {
    fn blank(rest: &[u8]) -> &[u8] {
        let spaces = rest.iter().take_while(|b| b" \t".contains(b)).count();
        &rest[spaces..]
    }
    fn word(rest: &[u8]) -> Option<&[u8]> {
        let length = rest.iter().take_while(|b| token(&[**b])).count();
        (length > 0).then(|| &rest[length..])
    }
    while !rest.is_empty() {
        let Some(after) = blank(rest).strip_prefix(b";") else {
            return false;
        };
        let Some(after) = word(blank(after)) else {
            return false;
        };
        rest = blank(after);
        if let Some(value) = rest.strip_prefix(b"=") {
            let value = blank(value);
            let Some(mut quoted) = value.strip_prefix(b"\"") else {
                let Some(after) = word(value) else {
                    return false;
                };
                rest = blank(after);
                continue;
            };
            loop {
                let Some((&first, after)) = quoted.split_first() else {
                    return false;
                };
                quoted = after;
                match first {
                    b'"' => break,
                    b'\\' => match quoted.split_first() {
                        Some((&escaped, after)) if text(&[escaped]) => quoted = after,
                        _ => return false,
                    },
                    other if text(&[other]) => {}
                    _ => return false,
                }
            }
            rest = blank(quoted);
        }
    }
    true
}

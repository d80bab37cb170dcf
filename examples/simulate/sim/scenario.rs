//! The scenario file: TOML text becomes a [`Scenario`], or messages with line and column.

use std::{collections::BTreeMap, fs, num::NonZero, path::Path};

use serde::{Deserialize, Deserializer, de};
use tidegate::{
    admission::state,
    config::{self, Class, Sources, Value, parse_size},
    limit::{self, Group},
    proxy,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// One experiment, ready to run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What reports call it.
    pub name: String,
    /// One run each.
    pub seeds: Vec<u64>,
    /// How many tidegates share the backend; each request goes to one of them by chance.
    pub tidegates: usize,
    /// The backend as it is before any phase changes it.
    pub backend: Backend,
    /// Kinds of requests.
    pub classes: Vec<RequestClass>,
    /// Who asks.
    pub client: Client,
    /// The law's settings, by the product's own configuration code.
    pub limit: limit::Settings,
    /// The queue's settings, likewise.
    pub queue: state::Settings,
    /// One after the other.
    pub phases: Vec<Phase>,
}

impl Scenario {
    /// What the law knows the `number`th request by, of this class: its path, or its route, whose number is that of the
    /// first class on it.
    pub fn group(&self, class: usize, number: usize) -> Group {
        if let Some(paths) = NonZero::new(self.classes[class].paths) {
            return Group::Path(path(class, number % paths.get()));
        }
        let own = self.classes[class].route();
        let first = self.classes.iter().position(|one| one.route() == own);
        Group::Route(first.unwrap_or(class) as u16)
    }
}

/// A hash, as of a path.
fn path(class: usize, number: usize) -> u16 {
    let mixed = ((class as u64) << 32 | number as u64)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}

/// How the backend works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `slots` servers on one FIFO.
    Slots,
    /// Processor sharing among `slots` on `cores`.
    Sharing,
}

/// `[backend]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backend {
    pub kind: Kind,
    pub slots: u32,
    pub cores: f64,
    pub cpu_share: f64,
    pub thrash: f64,
    pub accept_queue_visible: bool,
    pub slots_known: bool,
    /// Bytes.
    #[serde(deserialize_with = "size")]
    pub memory_per_request: u64,
    /// Bytes; 0 = none.
    #[serde(deserialize_with = "size")]
    pub memory_limit: u64,
    /// Bytes in use with nothing in flight.
    #[serde(deserialize_with = "size")]
    pub memory_base: u64,
    /// Bytes a second by which the base grows until the next restart.
    #[serde(deserialize_with = "size")]
    pub memory_leak: u64,
    /// Parts of its heap, each used by some of the requests; 0 = what is freed is given back.
    pub memory_arenas: u32,
    /// Requests whose memory each of them keeps when they are done.
    pub memory_kept: u32,
    pub restart_seconds: f64,
}

impl Default for Backend {
    fn default() -> Self {
        Backend {
            kind: Kind::Slots,
            slots: 8,
            cores: 8.0,
            cpu_share: 1.0,
            thrash: 0.0,
            accept_queue_visible: true,
            slots_known: true,
            memory_per_request: 0,
            memory_limit: 0,
            memory_base: 0,
            memory_leak: 0,
            memory_arenas: 0,
            memory_kept: 1,
            restart_seconds: 3.0,
        }
    }
}

/// `[[class]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestClass {
    pub name: String,
    /// Mean time of work, unloaded.
    pub service_ms: f64,
    /// Coefficient of variation of the lognormal; 0 = constant.
    #[serde(default = "half")]
    pub cv: f64,
    #[serde(default = "normal", deserialize_with = "class")]
    pub priority: Class,
    /// What the law knows it by; classes of one route are the same to it. Without one, the name.
    pub route: Option<String>,
    /// Its requests have no route and ask for so many paths in turn, by which the law may tell them apart; 0 = they have
    /// a route.
    #[serde(default)]
    pub paths: usize,
}

impl RequestClass {
    fn route(&self) -> &str {
        self.route.as_ref().unwrap_or(&self.name)
    }
}

/// `[client]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// How long it waits for each attempt.
    pub timeout_ms: f64,
    /// Further attempts after a refusal or a time-out.
    pub retries: u32,
    /// Whether a refused one waits as long as it was told before it asks again.
    pub honours_retry_after: bool,
}

impl Default for Client {
    fn default() -> Self {
        Client {
            timeout_ms: 1000.0,
            retries: 0,
            honours_retry_after: false,
        }
    }
}

/// `[[phase]]`, with what it leaves out filled in.
#[derive(Clone, Debug)]
pub struct Phase {
    pub seconds: f64,
    /// Requests a second, in bursts if there are any.
    pub rps: f64,
    /// Seconds of each `burst_every`; 0 = no bursts.
    pub burst_on: f64,
    pub burst_every: f64,
    /// Requests a second between bursts.
    pub rps_off: f64,
    pub slots: u32,
    pub cores: f64,
    /// Service times are multiplied by this.
    pub slowdown: f64,
    /// Seconds between stops of all servers; 0 = none.
    pub pause_every: f64,
    pub pause_seconds: f64,
    /// Seconds at the start in which connections are refused.
    pub down_seconds: f64,
    /// Share of the requests that the backend answers with a 503, 0 to 1.
    pub errors: f64,
    /// Weight of each class.
    pub mix: Vec<f64>,
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it, a line each, with its place.
    pub fn read(path: &Path) -> Result<Scenario, String> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
        Scenario::parse(&name, &text)
    }

    /// Reads the text of a file; `name` is for messages.
    ///
    /// # Errors
    /// As [`Scenario::read`].
    pub fn parse(name: &str, text: &str) -> Result<Scenario, String> {
        let at = Places { name, text };
        let file: File = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            at.message(offset, error.message())
        })?;
        let classes = at.classes(file.class)?;
        let backend = at.backend(file.backend)?;
        let (limit, queue) = at.settings(&backend)?;
        let phases = at.phases(file.phase, &backend, &classes)?;
        let client = file.client.unwrap_or_default();
        if !(client.timeout_ms > 0.0 && client.timeout_ms.is_finite()) {
            return Err(at.message(0, "client.timeout_ms must be above 0"));
        }
        let tidegates = file.tidegates.unwrap_or(1);
        if !(1..=64).contains(&tidegates) {
            return Err(at.message(0, "tidegates must be 1 to 64"));
        }
        let seeds = file.seeds.unwrap_or_else(|| (1..=5).collect());
        if seeds.is_empty() {
            return Err(at.message(0, "seeds must have at least one"));
        }
        Ok(Scenario {
            name: file.name,
            seeds,
            tidegates,
            backend,
            classes,
            client,
            limit,
            queue,
            phases,
        })
    }

    /// Requests a second that the unchanged backend can do with this mix.
    pub fn capacity(backend: &Backend, classes: &[RequestClass], mix: &[f64]) -> f64 {
        let total: f64 = mix.iter().sum();
        let mean: f64 = (classes.iter().zip(mix))
            .map(|(class, share)| share / total * class.service_ms / 1e3)
            .sum();
        let slots = f64::from(backend.slots) / mean;
        match backend.kind {
            Kind::Sharing if backend.cpu_share > 0.0 => {
                slots.min(backend.cores / (backend.cpu_share * mean))
            }
            _ => slots,
        }
    }

    /// The requests in flight at which the backend of this phase has just no more to give.
    pub fn knee(&self, phase: &Phase) -> f64 {
        let slots = f64::from(phase.slots);
        match self.backend.kind {
            Kind::Sharing if self.backend.cpu_share > 0.0 => {
                slots.min(phase.cores / self.backend.cpu_share)
            }
            _ => slots,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "unnamed")]
    name: String,
    seeds: Option<Vec<u64>>,
    tidegates: Option<usize>,
    backend: Option<Spanned<Backend>>,
    #[serde(default)]
    class: Vec<Spanned<RequestClass>>,
    client: Option<Client>,
    /// Left to the product's own code.
    #[serde(rename = "limit")]
    _limit: Option<de::IgnoredAny>,
    #[serde(rename = "queue")]
    _queue: Option<de::IgnoredAny>,
    #[serde(default)]
    phase: Vec<Spanned<PhaseFile>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseFile {
    seconds: f64,
    load: Option<f64>,
    rps: Option<f64>,
    #[serde(default)]
    burst_on: f64,
    #[serde(default)]
    burst_every: f64,
    #[serde(default)]
    burst_off_load: f64,
    slots: Option<u32>,
    cores: Option<f64>,
    #[serde(default = "one")]
    slowdown: f64,
    #[serde(default)]
    pause_every: f64,
    #[serde(default)]
    pause_ms: f64,
    #[serde(default)]
    down_seconds: f64,
    #[serde(default)]
    errors: f64,
    mix: Option<BTreeMap<String, f64>>,
}

/// The text, to say where something is.
struct Places<'a> {
    name: &'a str,
    text: &'a str,
}

impl Places<'_> {
    fn place(&self, offset: usize) -> String {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        format!("{}:{line}:{column}", self.name)
    }

    fn message(&self, offset: usize, message: &str) -> String {
        format!("{}: {}", self.place(offset), message.replace('\n', " "))
    }

    fn classes(&self, classes: Vec<Spanned<RequestClass>>) -> Result<Vec<RequestClass>, String> {
        if classes.is_empty() {
            return Err(self.message(0, "at least one [[class]] is needed"));
        }
        let mut known: Vec<RequestClass> = Vec::new();
        for class in classes {
            let at = class.span().start;
            let class = class.into_inner();
            if !(class.service_ms > 0.0 && class.service_ms.is_finite()) {
                return Err(self.message(at, "service_ms must be above 0"));
            }
            if !(class.cv >= 0.0 && class.cv.is_finite()) {
                return Err(self.message(at, "cv must not be below 0"));
            }
            if known.iter().any(|other| other.name == class.name) {
                return Err(self.message(at, &format!("class {} is there twice", class.name)));
            }
            known.push(class);
        }
        Ok(known)
    }

    fn backend(&self, backend: Option<Spanned<Backend>>) -> Result<Backend, String> {
        let Some(backend) = backend else {
            return Ok(Backend::default());
        };
        let at = backend.span().start;
        let backend = backend.into_inner();
        let wrong = if backend.slots == 0 {
            "slots must be at least 1"
        } else if !(backend.cores > 0.0 && backend.cores.is_finite()) {
            "cores must be above 0"
        } else if !(0.0..=1.0).contains(&backend.cpu_share) {
            "cpu_share must be 0 to 1"
        } else if !(0.0..=1.0).contains(&backend.thrash) {
            "thrash must be 0 to 1"
        } else if !(backend.restart_seconds >= 0.0 && backend.restart_seconds.is_finite()) {
            "restart_seconds must not be below 0"
        } else {
            return Ok(backend);
        };
        Err(self.message(at, wrong))
    }

    /// `[limit]` and `[queue]` by the product's own code, which names each mistake and its remedy.
    fn settings(&self, backend: &Backend) -> Result<(limit::Settings, state::Settings), String> {
        let table = DeTable::parse(self.text).map_err(|error| error.to_string())?;
        let mut flags = Vec::new();
        if backend.slots_known {
            let slots = Value::Integer(backend.slots.into());
            flags.push(("discovery.slots".into(), "backend.slots".into(), slots));
        }
        for section in ["limit", "queue"] {
            if let Some(value) = table.get_ref().get(section) {
                self.flatten(section, value, &mut flags);
            }
        }
        let sources = Sources {
            flags,
            ..Sources::default()
        };
        let loaded = config::load(&sources).map_err(|problems| problems.to_string())?;
        let config = &loaded.config;
        let mut limit = proxy::control_settings(config);
        if config.limit.initial == 0 && !backend.slots_known {
            // The scenario's machine, not the one that simulates it.
            limit.initial = (2.0 * backend.cores).ceil() as u32;
            limit.initial = limit.initial.clamp(limit.min, limit.max);
        }
        Ok((limit, proxy::queue_settings(config)))
    }

    fn flatten(
        &self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        flags: &mut Vec<(String, String, Value)>,
    ) {
        if let DeValue::Table(table) = value.get_ref() {
            for (name, value) in table {
                self.flatten(&format!("{path}.{}", name.get_ref()), value, flags);
            }
            return;
        }
        let place = self.place(value.span().start);
        flags.push((path.to_owned(), place, given(value.get_ref())));
    }

    fn phases(
        &self,
        phases: Vec<Spanned<PhaseFile>>,
        backend: &Backend,
        classes: &[RequestClass],
    ) -> Result<Vec<Phase>, String> {
        if phases.is_empty() {
            return Err(self.message(0, "at least one [[phase]] is needed"));
        }
        let mut done: Vec<Phase> = Vec::new();
        let mut capacity = None;
        for phase in phases {
            let at = phase.span().start;
            let phase = phase.into_inner();
            let wrong = |message: &str| Err(self.message(at, message));
            let last = done.last();
            let mix = match &phase.mix {
                Some(mix) => self.mix(at, mix, classes)?,
                None => last.map_or_else(|| vec![1.0; classes.len()], |last| last.mix.clone()),
            };
            let capacity =
                *capacity.get_or_insert_with(|| Scenario::capacity(backend, classes, &mix));
            let rps = match (phase.load, phase.rps) {
                (Some(load), None) => load * capacity,
                (None, Some(rps)) => rps,
                _ => return wrong("a phase needs load or rps, not both"),
            };
            let next = Phase {
                seconds: phase.seconds,
                rps,
                burst_on: phase.burst_on,
                burst_every: phase.burst_every,
                rps_off: phase.burst_off_load * capacity,
                slots: phase
                    .slots
                    .unwrap_or(last.map_or(backend.slots, |p| p.slots)),
                cores: phase
                    .cores
                    .unwrap_or(last.map_or(backend.cores, |p| p.cores)),
                slowdown: phase.slowdown,
                pause_every: phase.pause_every,
                pause_seconds: phase.pause_ms / 1e3,
                down_seconds: phase.down_seconds,
                errors: phase.errors,
                mix,
            };
            let times = [
                next.rps,
                next.rps_off,
                next.burst_on,
                next.burst_every,
                next.pause_every,
                next.pause_seconds,
                next.down_seconds,
            ];
            if times.iter().any(|x| !(*x >= 0.0 && x.is_finite())) {
                return wrong("rates and times must not be below 0");
            }
            if !(next.seconds > 0.0 && next.seconds.is_finite()) {
                return wrong("seconds must be above 0");
            }
            if !(next.slowdown > 0.0 && next.slowdown.is_finite()) {
                return wrong("slowdown must be above 0");
            }
            if next.slots == 0 || !(next.cores > 0.0 && next.cores.is_finite()) {
                return wrong("slots and cores must be above 0");
            }
            if !(0.0..=1.0).contains(&next.errors) {
                return wrong("errors must be 0 to 1");
            }
            if next.pause_every > 0.0 && next.pause_seconds >= next.pause_every {
                return wrong("pause_ms must be less than pause_every");
            }
            done.push(next);
        }
        Ok(done)
    }

    fn mix(
        &self,
        at: usize,
        mix: &BTreeMap<String, f64>,
        classes: &[RequestClass],
    ) -> Result<Vec<f64>, String> {
        let mut shares = vec![0.0; classes.len()];
        for (name, &share) in mix {
            let Some(class) = classes.iter().position(|class| class.name == *name) else {
                return Err(self.message(at, &format!("mix names {name}, which is no class")));
            };
            shares[class] = share;
        }
        let all_valid = shares
            .iter()
            .all(|share| *share >= 0.0 && share.is_finite());
        if all_valid && shares.iter().sum::<f64>() > 0.0 {
            Ok(shares)
        } else {
            Err(self.message(at, "mix needs weights that are not below 0, and one above"))
        }
    }
}

/// A value for the product's configuration code.
fn given(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::Other(number.to_string()), Value::Integer),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or_else(|_| Value::Other(number.to_string()), Value::Float),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| config::Item {
                    value: given(item.get_ref()),
                    position: None,
                })
                .collect(),
        ),
        DeValue::Datetime(_) => Value::Other("a date".to_owned()),
        DeValue::Table(_) => Value::Other("a table".to_owned()),
    }
}

/// `"20MB"`, `"512MiB"`, or plain bytes.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Size;
    impl de::Visitor<'_> for Size {
        type Value = u64;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a size as \"20MiB\", or bytes")
        }
        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<u64, E> {
            u64::try_from(bytes).map_err(|_| E::custom("a size is not below 0"))
        }
        fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<u64, E> {
            Ok(bytes)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            parse_size(text).ok_or_else(|| E::custom(format!("{text:?} is no size as \"20MiB\"")))
        }
    }
    deserializer.deserialize_any(Size)
}

fn class<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Class, D::Error> {
    let word = String::deserialize(deserializer)?;
    let found = Class::ALL.iter().copied().find(|one| one.as_str() == word);
    found.ok_or_else(|| {
        let words: Vec<_> = Class::ALL.iter().map(|one| one.as_str()).collect();
        de::Error::custom(format!("{word:?} is no priority: {}", words.join(", ")))
    })
}

fn unnamed() -> String {
    "unnamed".to_owned()
}

fn half() -> f64 {
    0.5
}

fn one() -> f64 {
    1.0
}

fn normal() -> Class {
    Class::Normal
}

//! Why the limit moved or stayed, as stable words for metric labels and sentences for people.

/// The table of reasons: the word that labels a metric, and the sentence that `/status` shows.
pub const REASONS: &[(&str, &str)] = &[
    (
        SLOW_START,
        "Starting up: latency is flat and throughput still grows, so the limit grows in leaps.",
    ),
    (
        INCREASE,
        "Latency is near its unloaded value and requests wait for a place: the limit grows a little.",
    ),
    (
        RECOVER,
        "Latency is fine again: the limit goes half-way back to where it last worked.",
    ),
    (
        LATENCY,
        "Requests queue inside the backend: latency is stretched beyond the tolerance, so the limit falls.",
    ),
    (
        DROPS,
        "The backend times out, resets or answers 429, 502, 503 or 504: the limit falls.",
    ),
    (
        PROBE_DOWN,
        "A short dip of the limit, to measure what latency is with less load; excess requests wait.",
    ),
    (
        PROBE_UP,
        "A short rise of the limit, to see whether the backend can do more than it seems.",
    ),
    (
        RESTORE,
        "A probe is over: the limit is back where it was before it.",
    ),
    (
        REBASE,
        "Fewer requests did not make the backend faster, only idler: it got slower by itself, and that is its new normal.",
    ),
    (
        SATURATED,
        "Throughput stopped growing with the limit: start-up ends one step back.",
    ),
    (
        HOLD,
        "Latency is between flat and stretched, or a higher limit has just failed: the limit stays.",
    ),
    (
        IDLE,
        "Traffic seldom reaches the limit, so there is nothing to learn from it: the limit stays.",
    ),
    (
        SLOTS,
        "The backend has no more workers than this: what is sent beyond them only waits inside it.",
    ),
    (
        ACCEPT_QUEUE,
        "Requests wait in the kernel for a worker to accept them: the workers are all busy, and the limit ends at one more.",
    ),
    (
        CPU,
        "The backend's CPU is used up: more requests at once would only share it, so the limit does not grow, or falls.",
    ),
    (
        MEMORY,
        "The backend's memory is nearly used up: the limit does not grow, or falls, before a worker is killed for it.",
    ),
    (
        LEAK,
        "The backend's memory grows while its requests do not: it leaks. No limit stops that, so the limit stays.",
    ),
    (
        RECALL,
        "The limit begins where an earlier process found it, by what that one had learned of the backend.",
    ),
    (
        CONFIGURED,
        "The configuration or the operator holds the limit here.",
    ),
];

/// Growth by a factor while nothing resists: twofold under `aimd`, by half under `vegas`.
pub const SLOW_START: &str = "slow_start";
/// The additive step up.
pub const INCREASE: &str = "increase";
/// Half-way back to the last limit that worked.
pub const RECOVER: &str = "recover";
/// Latency is stretched.
pub const LATENCY: &str = "latency";
/// Too many signs of overload.
pub const DROPS: &str = "drops";
/// The dip that measures the unloaded latency.
pub const PROBE_DOWN: &str = "probe_down";
/// The rise that looks for unused capacity.
pub const PROBE_UP: &str = "probe_up";
/// The end of a probe.
pub const RESTORE: &str = "restore";
/// The baseline has moved.
pub const REBASE: &str = "rebase";
/// The end of slow start for lack of gain.
pub const SATURATED: &str = "saturated";
/// Nothing to do.
pub const HOLD: &str = "hold";
/// Nothing to learn.
pub const IDLE: &str = "idle";
/// The workers are counted.
pub const SLOTS: &str = "slots";
/// The workers are seen to be busy.
pub const ACCEPT_QUEUE: &str = "accept_queue";
/// The CPU is short.
pub const CPU: &str = "cpu";
/// The memory is short.
pub const MEMORY: &str = "memory";
/// The memory grows by itself: an alarm.
pub const LEAK: &str = "leak";
/// A state file knew it.
pub const RECALL: &str = "recall";
/// A person decided.
pub const CONFIGURED: &str = "configured";

/// The word for a resource that does not let the limit grow.
pub(super) fn vetoed(by: super::BoundBy) -> &'static str {
    match by {
        super::BoundBy::Workers => SLOTS,
        super::BoundBy::AcceptQueue => ACCEPT_QUEUE,
        super::BoundBy::Cpu => CPU,
        super::BoundBy::Memory => MEMORY,
        super::BoundBy::Configured => CONFIGURED,
        super::BoundBy::Idle => IDLE,
        super::BoundBy::Latency | super::BoundBy::Errors => HOLD,
    }
}

/// The sentence for people that goes with a [`Decision`](super::Decision)'s reason.
///
/// An unknown word gets an empty sentence.
pub fn explain(reason: &str) -> &'static str {
    REASONS
        .iter()
        .find(|(word, _)| *word == reason)
        .map_or("", |(_, sentence)| sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_snake_case_unique_and_explained() {
        for (i, (word, sentence)) in REASONS.iter().enumerate() {
            assert!(
                word.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{word}"
            );
            assert!(sentence.ends_with('.'), "{word}");
            assert!(
                REASONS[..i].iter().all(|(other, _)| other != word),
                "{word}"
            );
            assert_eq!(explain(word), *sentence);
        }
        assert_eq!(explain("no such reason"), "");
    }
}

//! What is counted for each route.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::observe::{
    histogram::Histogram,
    labels::{Reason, Source},
};

/// The handles of one route. Every method is a few atomic additions, without a lock or a look-up.
#[derive(Debug, Default)]
pub struct RouteMetrics {
    by_backend: Codes,
    by_tidegate: Codes,
    rejected: [AtomicU64; Reason::ALL.len()],
    would_reject: [AtomicU64; Reason::ALL.len()],
    pub(super) backend_seconds: Histogram,
    pub(super) first_byte_seconds: Histogram,
    pub(super) request_seconds: Histogram,
}

impl RouteMetrics {
    /// A request was answered with this status code.
    pub fn request(&self, code: u16, source: Source) {
        self.codes(source).count(code);
    }

    /// tidegate answered a request itself, for this reason. [`RouteMetrics::request`] counts the
    /// answer; this counts why.
    pub fn rejected(&self, reason: Reason) {
        self.rejected[reason as usize].fetch_add(1, Relaxed);
    }

    /// A dry run let a request pass that it would have refused.
    pub fn would_reject(&self, reason: Reason) {
        self.would_reject[reason as usize].fetch_add(1, Relaxed);
    }

    /// From the permit to the end of the backend's work. Never for a refused request.
    pub fn backend_seconds(&self, took: Duration) {
        self.backend_seconds.observe(took);
    }

    /// From the request's head to the first byte of its answer.
    pub fn first_byte_seconds(&self, took: Duration) {
        self.first_byte_seconds.observe(took);
    }

    /// From the request's head to the last byte of its answer.
    pub fn request_seconds(&self, took: Duration) {
        self.request_seconds.observe(took);
    }

    pub(super) fn codes(&self, source: Source) -> &Codes {
        match source {
            Source::Backend => &self.by_backend,
            Source::Tidegate => &self.by_tidegate,
        }
    }

    /// Those that never happened too, so that the first of them is a change that an alert sees.
    pub(super) fn rejections(&self) -> impl Iterator<Item = (Reason, u64)> {
        counted(&self.rejected)
    }

    /// In a dry run, only the refusals that shed load are left out.
    pub(super) fn would_be_rejections(&self) -> impl Iterator<Item = (Reason, u64)> {
        counted(&self.would_reject)
            .filter(|(reason, count)| *count > 0 || Reason::REFUSING.contains(reason))
    }

    pub(super) fn answered(&self, source: Source) -> u64 {
        self.codes(source)
            .0
            .iter()
            .map(|count| count.load(Relaxed))
            .sum()
    }

    pub(super) fn refused(&self) -> u64 {
        refusals(&self.rejected)
    }

    pub(super) fn would_refuse(&self) -> u64 {
        refusals(&self.would_reject)
    }
}

fn counted(counts: &[AtomicU64]) -> impl Iterator<Item = (Reason, u64)> {
    Reason::ALL
        .iter()
        .map(|reason| (*reason, counts[*reason as usize].load(Relaxed)))
}

fn refusals(counts: &[AtomicU64]) -> u64 {
    Reason::REFUSING
        .iter()
        .map(|reason| counts[*reason as usize].load(Relaxed))
        .sum()
}

/// The lowest status code there is, and how many there are (RFC 9110 leaves three digits).
const FIRST_CODE: u16 = 100;
const CODES: usize = 900;

/// A counter for each status code: 7 KiB, and no look-up.
#[derive(Debug)]
pub(super) struct Codes(Box<[AtomicU64]>);

impl Default for Codes {
    fn default() -> Self {
        Codes((0..CODES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Codes {
    fn count(&self, code: u16) {
        // No parser lets another number through; if one did, the count is better off than a panic.
        let place = usize::from(code.saturating_sub(FIRST_CODE)).min(CODES - 1);
        self.0[place].fetch_add(1, Relaxed);
    }

    /// The codes to show: those that were seen, and `known` ones at 0 too.
    pub(super) fn exported(&self, known: &[u16]) -> impl Iterator<Item = (u16, u64)> {
        (FIRST_CODE..)
            .zip(&self.0)
            .map(|(code, count)| (code, count.load(Relaxed)))
            .filter(|(code, count)| *count > 0 || known.contains(code))
    }
}

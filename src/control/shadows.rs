//! Laws that are computed on the same windows as the one in force, and only looked at.

use super::curve::Curve;
use super::law::{Law, Measured};
use super::{Algorithm, Settings};

/// A shadow cannot see what would follow from a limit much above the one in force: it stops at so
/// many times that.
const REACH: u32 = 2;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Shadows {
    laws: Vec<Law>,
}

impl Shadows {
    /// Those that the settings name, but not the one in force; those that are there already go on, new
    /// ones begin at this limit.
    pub(super) fn cast(&mut self, settings: &Settings, in_force: Algorithm, limit: u32) {
        let mut wanted: Vec<Algorithm> = Vec::new();
        for &algorithm in &settings.shadow {
            if algorithm != in_force && !wanted.contains(&algorithm) {
                wanted.push(algorithm);
            }
        }
        let mut known = std::mem::take(&mut self.laws);
        self.laws = wanted
            .into_iter()
            .map(
                |algorithm| match known.iter().position(|law| law.algorithm() == algorithm) {
                    Some(at) => known.swap_remove(at),
                    None => Law::new(algorithm, limit),
                },
            )
            .collect();
    }

    /// What requests cost has been found out anew.
    pub(super) fn forget(&mut self) {
        self.laws.iter_mut().for_each(Law::forget);
    }

    /// Each takes the window.
    pub(super) fn decide(&mut self, m: &Measured, curve: &Curve, settings: &Settings) {
        for law in &mut self.laws {
            law.decide(m, &mut curve.clone(), settings);
            law.clamp(1, m.point.limit.saturating_mul(REACH).max(1));
        }
    }

    /// What each would set.
    pub(super) fn limits(&self, settings: &Settings) -> impl Iterator<Item = (Algorithm, u32)> {
        self.laws
            .iter()
            .map(|law| (law.algorithm(), settings.clamp(law.limit(settings))))
    }
}

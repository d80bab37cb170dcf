//! TOML, environment and flags become one validated, immutable [`Config`].
//!
//! Everything that is known of a key (its kind, default, unit, whether a reload can change it) is
//! one line of the table in [`schema`]. [`load`] reads the four layers (default, then
//! file, environment, flag) through that table, collects **every** problem with its place, and only then builds
//! the typed `Config` that the rest of the crate uses.

mod address;
mod build;
mod check;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod load;
mod origin;
mod places;
mod problem;
mod render;
mod resolve;
mod route;
mod rules;
pub mod schema;
mod secrets;
mod shadowed;
mod typed;
mod types;
mod units;
mod value;
pub mod watch;

pub use address::{Address, AddressError};
pub(crate) use check::log_targets;
pub(crate) use load::open_regular;
pub use load::{
    Loaded, Sources, Tried, admin_listen, is_pipe, load, load_again, load_noting, needs_restart,
};
pub use origin::{Origin, Origins, Position};
pub(crate) use places::folder;
pub use places::unusable;
pub use problem::{Problem, Problems};
pub(crate) use route::{PathPattern, header_condition};
pub(crate) use rules::UNROUTED;
pub(crate) use secrets::hide as hide_secrets;
pub use shadowed::shadowed;
pub use types::*;
pub use units::{format_duration, format_size, parse_duration, parse_size};
pub use value::{Item, Value};

#[cfg(test)]
mod tests;

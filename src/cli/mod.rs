//! One file for each command.

pub mod admin_client;
pub mod drain;
pub mod healthcheck;
pub mod status;

//! `tidegate doctor`: what the backend is, and what it can run in parallel.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::{
    DoctorArgs, DoctorFormat,
    admin_client::{FAILURE, complain, print},
};
use crate::{
    config::{self, Address},
    doctor,
};

/// Examines each endpoint of the configuration and prints. Exits with 1 when one of them did not answer, with 2
/// when there is nothing to examine.
pub fn run(args: &DoctorArgs) -> ExitCode {
    let loaded = match config::load(&args.options.sources_to_look_at()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            let _ = writeln!(io::stderr(), "{problems}");
            return ExitCode::from(2);
        }
    };
    let config = &loaded.config;
    if config.backend.endpoints == [Address::any()] {
        complain(
            "process.command gets a free port from tidegate exec: say with --backend ADDR where it listens \
             (tidegate status shows it)",
        );
        return ExitCode::from(2);
    }
    let diagnoses: Vec<doctor::Diagnosis> = config
        .backend
        .endpoints
        .iter()
        .map(|endpoint| doctor::examine(endpoint, config))
        .collect();
    let text = match args.format {
        DoctorFormat::Text => {
            let each: Vec<String> = diagnoses.iter().map(doctor::text).collect();
            each.join("\n")
        }
        DoctorFormat::Json => {
            let each: Vec<serde_json::Value> = diagnoses.iter().map(doctor::json).collect();
            format!("{:#}\n", serde_json::json!({ "endpoints": each }))
        }
    };
    let printed = print(&text);
    if diagnoses.iter().all(doctor::Diagnosis::answered) {
        printed
    } else {
        FAILURE
    }
}

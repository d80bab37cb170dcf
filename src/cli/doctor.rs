//! `tidegate doctor`: what the backend is, and what it can run in parallel.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::{
    DoctorArgs, DoctorFormat,
    admin_client::{FAILURE, print},
};
use crate::{config, doctor};

/// Examines each endpoint of the configuration and prints. Exits with 1 when one of them did not answer.
pub fn run(args: &DoctorArgs) -> ExitCode {
    let loaded = match config::load(&args.options.sources()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            let _ = writeln!(io::stderr(), "{problems}");
            return ExitCode::from(2);
        }
    };
    let config = &loaded.config;
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

//! `tidegate config`: the effective configuration, with where each value came from.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::{ConfigArgs, ConfigFormat, admin_client::print};
use crate::config::load;

/// Prints the configuration; or each problem on a line of stderr and exits 2.
pub fn run(args: &ConfigArgs) -> ExitCode {
    let loaded = match load(&args.options.sources_to_look_at()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            let _ = writeln!(io::stderr(), "{problems}");
            return ExitCode::from(2);
        }
    };
    let text = match args.format {
        ConfigFormat::Toml => loaded.render_toml(),
        ConfigFormat::Json => format!("{:#}\n", loaded.to_json()),
    };
    print(&text)
}

//! Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict, 69 unreachable, 77 denied, 78 config.

use std::process::ExitCode;

use tidemill_core::{Error, ErrorKind};

/// A fault in a configuration file.
#[derive(Debug)]
pub struct ConfigFault(pub Error);

impl std::fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ConfigFault {}

/// Prints an error and gives its exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code(error))
}

fn code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<ConfigFault>().is_some() {
        return 78;
    }
    match error.downcast_ref::<Error>().map(Error::kind) {
        Some(ErrorKind::Invalid) => 2,
        Some(ErrorKind::NotFound) => 3,
        Some(ErrorKind::Conflict) => 4,
        Some(ErrorKind::Unavailable | ErrorKind::Closed) => 69,
        Some(ErrorKind::Denied) => 77,
        _ => 1,
    }
}

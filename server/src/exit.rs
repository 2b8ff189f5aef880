//! Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict, 69 unreachable, 77 denied, 78 config, 130 interrupted twice.

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

/// The exit code of an error.
pub fn code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<ConfigFault>().is_some() {
        return 78;
    }
    match error.downcast_ref::<Error>().map(Error::kind) {
        Some(ErrorKind::Invalid) => 2,
        Some(ErrorKind::NotFound) => 3,
        Some(ErrorKind::Conflict) => 4,
        Some(ErrorKind::Unavailable | ErrorKind::Closed) => 69,
        Some(ErrorKind::Denied) => 77,
        Some(_) => 1,
        None => {
            let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
            if causes.any(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied) { 77 } else { 1 }
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_may_not_be_done_is_77_wherever_it_is_met() {
        let denied = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert_eq!(code(&Error::from(denied()).context("make log").into()), 77);
        assert_eq!(code(&Err::<(), _>(denied()).context("make log").unwrap_err()), 77);
        assert_eq!(code(&std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()), 1);
        assert_eq!(code(&Error::not_found("x").into()), 3);
        assert_eq!(code(&ConfigFault(Error::not_found("x")).into()), 78);
    }
}

//! A MariaDB or MySQL database as a sync file names it, and connections to it.

use std::{sync::Once, time::Duration};

use mysql_async::{Conn, DriverError, IoError, Opts, OptsBuilder, SslOpts};

use super::Knobs;
use crate::{
    Error, ErrorKind, Result,
    endpoint::{Server, Tls},
    target::existing::OnExisting,
};

/// A server that does not answer within this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// No packet is longer: the protocol's own limit of a row.
const MAX_PACKET_BYTES: usize = 1 << 30;
/// What every session is told first: moments are in UTC, text is UTF-8, nothing is cut to fit, 0 is no missing number.
const SESSION: &str = "SET NAMES utf8mb4, time_zone = '+00:00', \
                       sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION'";

/// A database on a server.
#[derive(Debug, Clone)]
pub struct MysqlServer {
    pub(super) server: Server,
    pub(super) knobs: Knobs,
    /// What it does as a target with tables that exist.
    pub(super) on_existing: OnExisting,
}

impl MysqlServer {
    /// Names a database.
    pub fn new(server: &Server) -> Self {
        Self { server: server.clone(), knobs: Knobs::default(), on_existing: OnExisting::Refuse }
    }

    /// The same as a target that does this with tables that exist.
    pub fn with_existing(self, on_existing: OnExisting) -> Self {
        Self { on_existing, ..self }
    }

    /// The same with switches for tests.
    #[doc(hidden)]
    pub fn with_knobs(self, knobs: Knobs) -> Self {
        Self { knobs, ..self }
    }
}

/// Opens a session: in UTC, with UTF-8 and a strict SQL mode.
///
/// # Errors
/// `Unavailable` where the server is not there, `Denied` where it refuses us, `NotFound` where it has no such database.
pub async fn connect(server: &Server) -> Result<Conn> {
    let encrypted = !matches!(server.tls, Tls::Disable) && !server.host.starts_with('/');
    let opened = match open(server, encrypted).await {
        Err(Failure::NoTls) if server.tls == Tls::Prefer => open(server, false).await,
        other => other,
    };
    opened.map_err(|failure| match failure {
        Failure::NoTls => denied(format!(
            "mysql://{server} offers no TLS, and the URL asks for it: set up ssl_cert and ssl_key there, or say \
             sslmode=prefer"
        )),
        Failure::Other(error) => error.context(format!("connect to mysql://{server}")),
    })
}

enum Failure {
    NoTls,
    Other(Error),
}

async fn open(server: &Server, encrypted: bool) -> Result<Conn, Failure> {
    let opts = options(server, encrypted).map_err(Failure::Other)?;
    match tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(Conn::new(opts))).await {
        Ok(Ok(conn)) => Ok(conn),
        Ok(Err(mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer))) => Err(Failure::NoTls),
        Ok(Err(error)) => Err(Failure::Other(driver_error(&error))),
        Err(_) => {
            let limit = CONNECT_TIMEOUT.as_secs();
            Err(Failure::Other(Error::unavailable(format!("the server did not answer within {limit} s"))))
        }
    }
}

fn options(server: &Server, encrypted: bool) -> Result<Opts> {
    let mut builder = OptsBuilder::default()
        .user(Some(&server.user))
        .pass(server.password()?)
        .db_name(Some(&server.database))
        .prefer_socket(false)
        .max_allowed_packet(Some(MAX_PACKET_BYTES))
        .tcp_keepalive(Some(Duration::from_secs(20)))
        .init(vec![SESSION, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ"]);
    builder = match server.host.starts_with('/') {
        true => builder.socket(Some(&server.host)),
        false => builder.ip_or_hostname(&server.host).tcp_port(server.port),
    };
    if encrypted {
        choose_crypto();
        let anybody = server.tls != Tls::VerifyFull;
        builder = builder.ssl_opts(
            SslOpts::default().with_danger_accept_invalid_certs(anybody).with_danger_skip_domain_validation(anybody),
        );
    }
    Ok(builder.into())
}

/// Two providers are compiled in by dependencies; without a choice the first handshake would panic.
fn choose_crypto() {
    static CHOSEN: Once = Once::new();
    CHOSEN.call_once(|| {
        // An error means that somebody chose before us.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// The driver's error as one of ours. The driver is not kept as the cause: its details may hold values.
pub fn driver_error(error: &mysql_async::Error) -> Error {
    match error {
        mysql_async::Error::Server(refused) => {
            server_error(refused.code, &format!("the server says: {} (error {})", refused.message, refused.code))
        }
        mysql_async::Error::Io(IoError::Io(io)) if io.kind() == std::io::ErrorKind::InvalidData => {
            denied(format!("the server's certificate or answer is not accepted: {io}"))
        }
        mysql_async::Error::Io(IoError::Tls(tls)) => denied(format!("TLS: {tls}")),
        mysql_async::Error::Io(io) => Error::unavailable(format!("the connection failed: {io}")),
        mysql_async::Error::Driver(DriverError::UnknownAuthPlugin { name }) => {
            denied(format!("the user logs in by {name}, which is not supported"))
        }
        mysql_async::Error::Driver(DriverError::ConnectionClosed | DriverError::PoolDisconnected) => {
            Error::unavailable("the connection is closed")
        }
        mysql_async::Error::Driver(
            DriverError::PacketOutOfOrder | DriverError::UnexpectedPacket { .. } | DriverError::PacketTooLarge,
        ) => Error::unavailable(format!("the connection is out of step: {error}")),
        other => Error::internal(other.to_string()),
    }
}

/// The kind of a server's error, by its number.
fn server_error(code: u16, message: &str) -> Error {
    match code {
        // Wrong user, password or rights.
        1044 | 1045 | 1130 | 1142 | 1143 | 1227 | 1251 | 1370 | 1410 | 1698 | 1862 | 4151 => denied(message),
        1049 | 1146 => Error::not_found(message),
        // Too many connections, shutting down, killed, timed out, lost a lock, out of memory or disk.
        1021
        | 1037
        | 1038
        | 1040
        | 1041
        | 1053
        | 1077
        | 1079
        | 1080
        | 1129
        | 1152..=1161
        | 1184
        | 1203
        | 1205
        | 1206
        | 1213
        // The row changed since the transaction's snapshot, where the server keeps to that.
        | 1020
        | 1226
        | 1290
        | 1317
        | 1792
        | 1836
        | 1927
        | 1969
        | 2002..=2013
        | 3024
        | 4031 => Error::unavailable(message),
        1064 => Error::internal(message),
        _ => Error::conflict(message),
    }
}

fn denied(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Denied, message)
}

/// A name in backticks, doubled inside.
pub fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Secret;

    #[tokio::test]
    async fn a_server_that_is_not_there_is_unavailable_and_the_password_is_not_told() {
        for tls in [Tls::Disable, Tls::Prefer, Tls::VerifyFull] {
            let server = Server {
                host: "127.0.0.1".into(),
                port: 1,
                user: "cdc".into(),
                password: Some(Secret::Plain("hunter2".into())),
                database: "shop".into(),
                tls,
            };
            let error = connect(&server).await.expect_err("nobody listens");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(!format!("{error} {error:?} {:?}", MysqlServer::new(&server)).contains("hunter2"));
        }
    }

    #[test]
    fn errors_have_kinds_and_names_are_quoted() {
        for (code, kind) in [
            (1045, ErrorKind::Denied),
            (1049, ErrorKind::NotFound),
            (1205, ErrorKind::Unavailable),
            (1406, ErrorKind::Conflict),
        ] {
            assert_eq!(server_error(code, "x").kind(), kind);
        }
        assert_eq!(identifier("a`b"), "`a``b`");
    }
}

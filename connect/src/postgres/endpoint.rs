//! A PostgreSQL database as a sync file names it: how to connect, and what its errors mean.
//!
//! Every connection has the same settings, whatever the role's or the server's are: values come as text, and the copy and
//! the stream must spell them alike.

use std::time::Duration;

use futures::TryStreamExt;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection, Executor, PgConnection, Row as _, ValueRef,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::{
    Error, ErrorKind, Result,
    endpoint::{Server, Tls},
    target::existing::OnExisting,
};

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of every session. What a client asks for when it connects goes before the settings of role and database.
pub(super) const SETTINGS: [(&str, &str); 11] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("xmloption", "content"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // Lets a server see that we are gone.
    ("tcp_keepalives_idle", "60"),
    ("row_security", "off"),
];

/// A PostgreSQL database, as a source and as a target.
#[derive(Debug, Clone)]
pub struct PostgresServer {
    pub(super) server: Server,
    /// What it does as a target with tables that exist.
    pub(super) on_existing: OnExisting,
}

impl PostgresServer {
    /// Names a database.
    pub fn new(server: Server) -> Self {
        Self { server, on_existing: OnExisting::Refuse }
    }

    /// The same as a target that does this with tables that exist.
    pub fn with_existing(self, on_existing: OnExisting) -> Self {
        Self { on_existing, ..self }
    }
}

/// Connects.
///
/// # Errors
/// `Unavailable` where the server is not there or refuses for now, `Denied` where it refuses us, `NotFound` where the
/// database does not exist.
pub async fn connect(server: &Server) -> Result<PgConnection> {
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(server.port)
        .username(&server.user)
        .database(&server.database)
        .application_name("tidemill")
        .ssl_mode(match server.tls {
            Tls::Disable => PgSslMode::Disable,
            Tls::Prefer => PgSslMode::Prefer,
            Tls::Require => PgSslMode::Require,
            Tls::VerifyFull => PgSslMode::VerifyFull,
        })
        .extra_float_digits(None)
        .options(SETTINGS);
    options = match server.host.starts_with('/') {
        true => options.host("localhost").socket(&server.host),
        false => options.host(&server.host),
    };
    if let Some(password) = server.password()? {
        options = options.password(&password);
    }
    // The driver would write slow statements into our log, with the rows that stand in them.
    options = options.disable_statement_logging();
    let doing = || format!("connect to postgres://{server}");
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(Ok(conn)) => Ok(conn),
        Ok(Err(error)) => Err(postgres_error(doing(), error)),
        Err(_) => Err(Error::unavailable(format!("{}: no answer in {} s", doing(), CONNECT_TIMEOUT.as_secs()))),
    }
}

/// An error of the driver, in the kind that tells what to do.
pub fn postgres_error(doing: impl Into<String>, error: sqlx::Error) -> Error {
    let doing = doing.into();
    match &error {
        sqlx::Error::Database(said) => {
            let code = said.code().unwrap_or_default();
            Error::new(kind_of(&code), format!("{doing}: {} (SQLSTATE {code})", said.message()))
        }
        sqlx::Error::Configuration(_) => Error::invalid(format!("{doing}: {error}")),
        // A certificate that nobody vouches for comes as data that is invalid.
        sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
            Error::new(ErrorKind::Denied, format!("{doing}: {error}"))
        }
        sqlx::Error::Tls(_) => Error::new(ErrorKind::Denied, format!("{doing}: {error}")),
        _ => Error::unavailable(format!("{doing}: {error}")),
    }
}

/// What an SQLSTATE asks of the caller.
pub(super) fn kind_of(code: &str) -> ErrorKind {
    match code {
        "42501" => ErrorKind::Denied,
        "3D000" | "42P01" | "42704" | "3F000" => ErrorKind::NotFound,
        "55006" | "55P03" | "25006" | "XX000" => ErrorKind::Unavailable,
        _ => match code.get(..2).unwrap_or_default() {
            "28" => ErrorKind::Denied,
            "08" | "40" | "53" | "57" | "58" => ErrorKind::Unavailable,
            "0A" => ErrorKind::Unsupported,
            _ => ErrorKind::Invalid,
        },
    }
}

/// A name between double quotes.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text between single quotes. Sessions have `standard_conforming_strings` on: a backslash is a character.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A table's name with its schema, quoted.
pub fn quoted_table(schema: Option<&str>, name: &str) -> String {
    format!("{}.{}", identifier(schema.unwrap_or("public")), identifier(name))
}

/// Runs statements that give nothing.
pub(super) async fn execute(conn: &mut PgConnection, doing: &str, sql: impl Into<String>) -> Result<()> {
    let run = conn.execute(sqlx::raw_sql(AssertSqlSafe(sql.into())));
    run.await.map(drop).map_err(|e| postgres_error(doing, e))
}

/// A row's columns as text.
pub(super) type TextRow = Vec<Option<String>>;

/// Runs a query whose columns are all of type `text`.
pub(super) async fn query(conn: &mut PgConnection, doing: &str, sql: impl Into<String>) -> Result<Vec<TextRow>> {
    let mut found = Vec::new();
    let mut rows = conn.fetch(sqlx::raw_sql(AssertSqlSafe(sql.into())));
    while let Some(row) = rows.try_next().await.map_err(|e| postgres_error(doing, e))? {
        let mut texts = Vec::with_capacity(row.len());
        for i in 0..row.len() {
            let value = row.try_get_raw(i).map_err(|e| postgres_error(doing, e))?;
            let text = match value.is_null() {
                true => None,
                false => Some(value.as_str().map_err(|e| Error::corrupt(format!("{doing}: {e}")))?.to_owned()),
            };
            texts.push(text);
        }
        found.push(texts);
    }
    Ok(found)
}

/// The one value of a query's one row, if it is not NULL.
pub(super) async fn query_one(conn: &mut PgConnection, doing: &str, sql: impl Into<String>) -> Result<Option<String>> {
    Ok(query(conn, doing, sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
}

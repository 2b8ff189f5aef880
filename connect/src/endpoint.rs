//! Databases as sync files name them: URLs, passwords, and which connector serves them.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use url::Url;

use crate::{
    Error, Result,
    connector::{SinkConnector, SourceConnector},
    mysql::endpoint::MysqlServer,
    postgres::endpoint::PostgresServer,
    sqlite::{endpoint::SqliteFile, preflight::check_target_is_not_source},
    target::existing::OnExisting,
    types::Dialect,
};

/// A database that a sync reads or writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(Server),
    /// A MySQL or MariaDB database.
    Mysql(Server),
}

/// A database on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Name or address; of PostgreSQL also the folder of a unix socket.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The user to connect as.
    pub user: String,
    /// The user's password.
    pub password: Option<Secret>,
    /// The database.
    pub database: String,
    /// How the connection is protected.
    pub tls: Tls,
}

/// How a connection is protected: `sslmode` in a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// Not at all.
    Disable,
    /// Encrypted where the server offers it.
    #[default]
    Prefer,
    /// Encrypted; whoever the server is.
    Require,
    /// Encrypted, with a certificate for the server's name.
    VerifyFull,
}

/// A password, or where one is kept. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The password itself.
    Plain(String),
    /// The name of an environment variable.
    Env(String),
    /// A file; line ends at its end are no part of the password.
    File(PathBuf),
}

impl Secret {
    /// Reads `${env:NAME}`, `${file:PATH}` (relative to `folder`) or a plain password.
    ///
    /// # Errors
    /// `Invalid` for a `${..}` of another kind.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let Some(reference) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else {
            return Ok(Self::Plain(text.to_owned()));
        };
        match reference.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(folder.join(path))),
            _ => Err(Error::invalid(format!("{text} is neither ${{env:NAME}} nor ${{file:PATH}}"))),
        }
    }

    /// The password.
    ///
    /// # Errors
    /// `Invalid` names the variable or file that is not there.
    pub fn reveal(&self) -> Result<String> {
        match self {
            Self::Plain(text) => Ok(text.clone()),
            Self::Env(name) => std::env::var(name)
                .map_err(|_| Error::invalid(format!("the password's environment variable {name} is not set"))),
            Self::File(path) => std::fs::read_to_string(path)
                .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                .map_err(|e| Error::invalid(format!("the password's file {}: {e}", path.display()))),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(_) => f.write_str("***"),
            Self::Env(name) => write!(f, "${{env:{name}}}"),
            Self::File(path) => write!(f, "${{file:{}}}", path.display()),
        }
    }
}

impl Server {
    /// The password, or nothing where none is named.
    ///
    /// # Errors
    /// As [`Secret::reveal`].
    pub fn password(&self) -> Result<Option<String>> {
        self.password.as_ref().map(Secret::reveal).transpose()
    }
}

impl Endpoint {
    /// Reads a URL. `password` is the one that stands beside it; paths are relative to `folder`.
    ///
    /// # Errors
    /// `Invalid` tells what is wrong with it, without what may be a password.
    pub fn parse(url: &str, password: Option<Secret>, folder: &Path) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once(':') else {
            return Err(Error::invalid(format!("{url:?} is not a URL; sqlite:FILE is one")));
        };
        let server = |port| Server::parse(url, port, password.clone(), folder);
        match scheme {
            "sqlite" if password.is_some() => Err(Error::invalid("a SQLite file has no password")),
            "sqlite" if rest.is_empty() => Err(Error::invalid(format!("{url:?} names no file"))),
            "sqlite" => Ok(Self::Sqlite(folder.join(rest.trim_start_matches("//")))),
            "postgres" | "postgresql" => server(5432).map(Self::Postgres),
            "mysql" | "mariadb" => server(3306).map(Self::Mysql),
            _ => Err(Error::invalid(format!(
                "{scheme:?} is not a known kind of database; sqlite:, postgres: and mysql: are"
            ))),
        }
    }

    /// Whether its password stands in the sync file itself.
    pub fn holds_password(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(server) | Self::Mysql(server) => matches!(server.password, Some(Secret::Plain(_))),
        }
    }

    /// Whether its password is where the sync file says.
    ///
    /// # Errors
    /// As [`Secret::reveal`].
    pub fn check_password(&self) -> Result<()> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(server) | Self::Mysql(server) => server.password().map(drop),
        }
    }

    /// Which kind of database it is.
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
            Self::Mysql(_) => Dialect::Mysql,
        }
    }

    /// It as a source.
    ///
    /// # Errors
    /// None at present: every kind can be read.
    pub fn source(&self) -> Result<Box<dyn SourceConnector>> {
        match self {
            Self::Sqlite(path) => Ok(Box::new(SqliteFile::new(path))),
            Self::Postgres(server) => Ok(Box::new(PostgresServer::new(server.clone()))),
            Self::Mysql(server) => Ok(Box::new(MysqlServer::new(server))),
        }
    }

    /// It as a target.
    ///
    /// # Errors
    /// None at present: every kind can be written.
    pub fn sink(&self) -> Result<Box<dyn SinkConnector>> {
        self.sink_with(OnExisting::Refuse)
    }

    /// As [`Endpoint::sink`], which does this with tables that exist.
    ///
    /// # Errors
    /// As [`Endpoint::sink`].
    pub fn sink_with(&self, on_existing: OnExisting) -> Result<Box<dyn SinkConnector>> {
        match self {
            Self::Sqlite(path) => Ok(Box::new(SqliteFile::new(path).with_existing(on_existing))),
            Self::Postgres(server) => Ok(Box::new(PostgresServer::new(server.clone()).with_existing(on_existing))),
            Self::Mysql(server) => Ok(Box::new(MysqlServer::new(server).with_existing(on_existing))),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(server) => write!(f, "postgres://{server}"),
            Self::Mysql(server) => write!(f, "mysql://{server}"),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl Endpoint {
    /// What names the database, whoever asks: two endpoints of one name are one database.
    pub fn identity(&self) -> String {
        let server =
            |scheme: &str, server: &Server| format!("{scheme}://{}:{}/{}", server.host, server.port, server.database);
        match self {
            Self::Sqlite(path) => {
                let path = path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.clone());
                format!("sqlite:{}", path.display())
            }
            Self::Postgres(at) => server("postgres", at),
            Self::Mysql(at) => server("mysql", at),
        }
    }
}

/// Why two endpoints cannot be the two ends of a sync: they are one database.
pub fn same_database(from: &Endpoint, to: &Endpoint) -> Option<String> {
    match (from, to) {
        (Endpoint::Sqlite(from), Endpoint::Sqlite(to)) => {
            let same = check_target_is_not_source(from, to);
            (!same.ok).then_some(same.message)
        }
        // Two names of one server are not seen through.
        _ => (from.identity() == to.identity()).then(|| "source and target are the same database".to_owned()),
    }
}

impl Server {
    fn parse(text: &str, port: u16, password: Option<Secret>, folder: &Path) -> Result<Self> {
        // The text may hold a password: no message repeats it.
        let url = Url::parse(text).map_err(|e| Error::invalid(format!("not a URL: {e}")))?;
        let decoded = |text: &str| -> Result<String> {
            let bytes: Vec<u8> = percent_decode(text.as_bytes());
            String::from_utf8(bytes).map_err(|_| Error::invalid("the URL holds bytes that are not UTF-8"))
        };
        let mut server = Self {
            host: decoded(url.host_str().unwrap_or_default())?.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(port),
            user: decoded(url.username())?,
            password,
            database: decoded(url.path().trim_start_matches('/'))?,
            tls: Tls::default(),
        };
        if let Some(inside) = url.password() {
            if server.password.is_some() {
                return Err(Error::invalid("a password stands in the URL and another beside it"));
            }
            server.password = Some(Secret::parse(&decoded(inside)?, folder)?);
        }
        for (name, value) in url.query_pairs() {
            match &*name {
                "sslmode" | "ssl-mode" => server.tls = Tls::parse(&value)?,
                "host" => server.host = value.into_owned(),
                _ => {
                    return Err(Error::invalid(format!(
                        "unknown parameter {name} in the URL; known are sslmode, host"
                    )));
                }
            }
        }
        if server.host.is_empty() {
            server.host = "127.0.0.1".into();
        }
        for (what, empty) in [("user", server.user.is_empty()), ("database", server.database.is_empty())] {
            if empty {
                return Err(Error::invalid(format!("the URL names no {what}: {}://USER@HOST/DATABASE", url.scheme())));
            }
        }
        Ok(server)
    }
}

impl Tls {
    fn parse(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().replace('_', "-").as_str() {
            "disable" | "disabled" => Ok(Self::Disable),
            "prefer" | "preferred" => Ok(Self::Prefer),
            "require" | "required" => Ok(Self::Require),
            "verify-full" | "verify-identity" => Ok(Self::VerifyFull),
            _ => Err(Error::invalid(format!("sslmode {text:?} is none of disable, prefer, require, verify-full"))),
        }
    }
}

fn percent_decode(bytes: &[u8]) -> Vec<u8> {
    let hex = |at: usize| bytes.get(at).and_then(|byte| (*byte as char).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            // Two hexadecimal digits are less than 256.
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<Endpoint> {
        Endpoint::parse(url, None, Path::new("dir"))
    }

    #[test]
    fn urls_name_servers() {
        let Endpoint::Postgres(server) = parsed("postgres://cdc@db/shop").expect("good") else { panic!("no server") };
        assert_eq!((server.host.as_str(), server.port, server.user.as_str()), ("db", 5432, "cdc"));
        let Endpoint::Mysql(server) = parsed("mysql://a%40b:p%2Fw@[::1]:33/d?sslmode=require").expect("good") else {
            panic!("no server")
        };
        assert_eq!((server.host.as_str(), server.port, server.user.as_str()), ("::1", 33, "a@b"));
        assert_eq!((server.password().expect("plain").as_deref(), server.tls), (Some("p/w"), Tls::Require));
        assert_eq!(parsed("sqlite:a.db").expect("good"), Endpoint::Sqlite("dir/a.db".into()));
    }

    #[test]
    fn passwords_are_not_shown() {
        let endpoint = parsed("postgres://cdc:hunter2@db/shop").expect("good");
        assert_eq!(endpoint.to_string(), "postgres://cdc@db:5432/shop");
        assert!(!format!("{endpoint:?}").contains("hunter2"));
        for url in ["postgres://cdc:hunter2@db:x/shop", "postgres://cdc:hunter2@db", "postgres://u:hunter2@h/d?x=1"] {
            let error = parsed(url).expect_err(url).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn passwords_may_stand_elsewhere() {
        let secret = Secret::parse("${env:NO_SUCH_NAME_HERE}", Path::new("d")).expect("good");
        assert!(secret.reveal().expect_err("not set").to_string().contains("NO_SUCH_NAME_HERE"));
        assert_eq!(Secret::parse("${file:pw}", Path::new("d")).expect("good"), Secret::File("d/pw".into()));
        assert!(Secret::parse("${vault:x}", Path::new("d")).is_err());
        assert_eq!(Secret::parse("$x", Path::new("d")).expect("good"), Secret::Plain("$x".into()));
    }
}

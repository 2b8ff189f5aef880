//! What the load writes to, and in which words.

use std::path::Path;
use std::process::Command;

use super::super::judge::{Cell, Class};
use super::super::{ADMIN, MariaDb, Postgres};

/// A column of the load's tables.
pub struct Column {
    pub name: &'static str,
    pub class: Class,
    pub key: bool,
}

const fn key(name: &'static str, class: Class) -> Column {
    Column { name, class, key: true }
}

const fn column(name: &'static str, class: Class) -> Column {
    Column { name, class, key: false }
}

/// The tables by what follows the prefix. The last one holds the number of the last transaction.
pub const TABLES: &[(&str, &[Column])] = &[
    (
        "wide",
        &[
            key("id", Class::Number),
            column("name", Class::Text),
            column("amount", Class::Number),
            column("big", Class::Text),
            column("data", Class::Bytes),
            column("flag", Class::Bool),
            column("at", Class::Timestamp),
        ],
    ),
    (
        "pair",
        &[key("a", Class::Number), key("b", Class::Text), column("n", Class::Number), column("note", Class::Text)],
    ),
    ("text", &[key("k", Class::Text), column("v", Class::Text)]),
    ("tx", &[key("id", Class::Number), column("n", Class::Number)]),
];

#[derive(Clone, Copy, PartialEq)]
pub enum Dialect {
    Postgres,
    MariaDb,
    Sqlite,
}

/// A database to write to. It stays right over restarts, which keep the port.
pub struct Target {
    pub(super) dialect: Dialect,
    /// Of the server, or of a wire to it.
    port: u16,
    client: Box<dyn Fn(u16) -> Command + Send>,
}

impl Target {
    pub fn postgres(server: &Postgres, db: &str) -> Self {
        let db = db.to_owned();
        let client = move |port| Postgres::plain_client(port, ADMIN, &db);
        Self { dialect: Dialect::Postgres, port: server.port(), client: Box::new(client) }
    }

    pub fn mariadb(server: &MariaDb, db: &str) -> Self {
        let db = db.to_owned();
        let client = move |port| MariaDb::plain_client(port, ADMIN, &db);
        Self { dialect: Dialect::MariaDb, port: server.port(), client: Box::new(client) }
    }

    pub fn sqlite(path: &Path) -> Self {
        let path = path.to_owned();
        let client = move |_| {
            let mut command = Command::new("sqlite3");
            command.args(["-batch", "-bail", "-cmd", ".timeout 30000"]).arg(&path);
            command
        };
        Self { dialect: Dialect::Sqlite, port: 0, client: Box::new(client) }
    }

    /// Writes by way of another port, which leads to the server.
    pub fn through(self, port: u16) -> Self {
        Self { port, ..self }
    }

    pub(super) fn client(&self) -> Command {
        (self.client)(self.port)
    }
}

impl Dialect {
    /// Makes the tables and writes the first number.
    pub fn create(self, prefix: &str) -> String {
        let mut sql = match self {
            Dialect::Sqlite => "pragma journal_mode = wal;\n".to_owned(),
            _ => String::new(),
        };
        for (table, columns) in TABLES {
            let list: Vec<String> = columns.iter().map(|c| format!("{} {}", c.name, self.kind(c))).collect();
            let keys: Vec<&str> = columns.iter().filter(|c| c.key).map(|c| c.name).collect();
            // Without this, texts that differ only in case or in blanks at their end are one key to MariaDB.
            let end = if self == Dialect::MariaDb { " charset utf8mb4 collate utf8mb4_nopad_bin" } else { "" };
            sql += &format!(
                "create table {prefix}_{table} ({}, primary key ({})){end};\n",
                list.join(", "),
                keys.join(", ")
            );
        }
        sql + &format!("insert into {prefix}_tx values (1, 0);\n")
    }

    fn kind(self, column: &Column) -> &'static str {
        match (column.class, self) {
            (Class::Number, Dialect::Sqlite) if column.name == "amount" => "text",
            (Class::Number, _) if column.name == "amount" => "decimal(20, 6)",
            (Class::Number, Dialect::Sqlite) => "integer",
            (Class::Number, _) => "bigint",
            (Class::Text, Dialect::MariaDb) if column.key => "varchar(100)",
            (Class::Text, Dialect::MariaDb) => "longtext",
            (Class::Text, _) => "text",
            (Class::Bytes, Dialect::Postgres) => "bytea",
            (Class::Bytes, Dialect::MariaDb) => "longblob",
            (Class::Bytes, Dialect::Sqlite) => "blob",
            (Class::Bool, _) => "boolean",
            (Class::Timestamp, Dialect::MariaDb) => "datetime(6)",
            (Class::Timestamp, _) => "timestamp",
            (class, _) => unreachable!("the load has no column of class {class:?}"),
        }
    }

    /// A value as it is written in a statement.
    pub fn literal(self, column: &Column, cell: &Cell) -> String {
        let Some(text) = cell else { return "null".to_owned() };
        match column.class {
            Class::Number if column.name != "amount" => text.clone(),
            Class::Bool => text.clone(),
            Class::Bytes if self == Dialect::Postgres => format!("'\\x{text}'"),
            Class::Bytes => format!("x'{text}'"),
            _ if self == Dialect::MariaDb => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''")),
            _ => format!("'{}'", text.replace('\'', "''")),
        }
    }

    pub fn begin(self) -> &'static str {
        // SQLite: so that the transaction waits for its turn here, where it may, and not in the middle.
        if self == Dialect::Sqlite { "begin immediate;\n" } else { "begin;\n" }
    }

    /// Makes the client print a line, which says that all before it is done.
    pub fn marker(self, number: u64) -> String {
        match self {
            Dialect::Postgres => format!("\\echo done {number}\n"),
            Dialect::MariaDb => format!("select 'done {number}';\n"),
            Dialect::Sqlite => format!(".print done {number}\n"),
        }
    }

    /// Asks for the last committed transaction. Where a session that lost its client may still be committing, the lock
    /// waits for it.
    pub fn last_transaction(self, prefix: &str) -> String {
        let lock = if self == Dialect::Sqlite { "" } else { " for update" };
        format!("select n from {prefix}_tx where id = 1{lock};\n")
    }
}

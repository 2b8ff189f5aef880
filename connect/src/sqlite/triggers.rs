//! The objects that the capture keeps in a source, and why they make it exact.
//!
//! # Objects
//!
//! | object | what it holds |
//! |---|---|
//! | `_tm_seq(n, source, mark)` | one row: the last sequence given, the file's identity, the mark (see `guard`) |
//! | `_tm_cap_T(seq, had, has, b0.., a0..)` | the journal of table T: row before and after, untyped columns |
//! | `_tm_cand_T(live, c0..)` | by key, the *captured state* of rows touched since the last prune: the image that the journal ends with, or `live = 0` for "absent" |
//! | `_tm_top_T(id)` | rowid tables only: the greatest rowid at the last prune |
//! | six triggers on T | BEFORE/AFTER INSERT, BEFORE/AFTER UPDATE, BEFORE DELETE + AFTER DELETE |
//!
//! # Why it is exact
//!
//! *touch(k)* writes one journal row: before = captured state of k, after = row k **re-read from the table**; then
//! the captured state becomes the after image. So events of a key chain by construction, whatever order
//! triggers run in, and a touch too many writes a row whose images are equal, which the reader drops. Two
//! things remain to be shown.
//!
//! 1. *Every changed key is touched after its last change.* AFTER triggers touch OLD's and NEW's key. A row that
//!    REPLACE displaces through the key is touched as NEW's key. One displaced through another unique index fires no
//!    trigger; but before it happens its image is in `_tm_cand_T` (BEFORE puts there each row that NEW would
//!    displace; a nested statement that makes a row conflict later has touched it). So AFTER looks there for rows
//!    with NEW's unique values that the table no longer holds.
//! 2. *The captured state is right when first put.* BEFORE triggers put OLD's row, the rows NEW would displace, and
//!    "absent" for a new key, before anything changes. Only a rowid that SQLite chooses is unknown then; an
//!    application trigger that updates the new row before our AFTER INSERT ran would have it put as present. Hence
//!    `_tm_top_T`: a rowid above it that is not in `_tm_cand_T` was inserted since the prune and not yet captured.
//!    BEFORE INSERT lowers it when the greatest rows are gone. (Not covered: random rowids in a table that holds
//!    rowid 2^63-1. There an update may come without its insert before it; the state is right all the same.)
//!
//! A statement that changes a row and ends without its AFTER triggers is caught in the prune, which compares the states
//! with the table before it lets them go.
//!
//! Rows leave `_tm_cand_T` only in a prune, which holds the write lock: inside a statement an outer one may still
//! need them. No conflict clause is used, because the clause of the application's statement would override it.
//! Nothing here needs more than SQLite 3.8: it is the application's library that runs these triggers.
//!
//! SQLite fires the newest trigger first. Ours are kept the newest: an application's that fails under OR FAIL, or
//! calls RAISE(IGNORE), keeps older ones from firing although the row stays changed. The hole that remains is
//! between the making of such a trigger and the next read.
//!
//! Unseen by any trigger, and named in the docs: incremental blob writes, `writable_schema`, a connection with
//! triggers switched off, a TEMP trigger that ends ours as above, and REPLACE on the hidden rowid of a table whose key is something else.

use super::catalog::{TableInfo, Unique};
use super::value::identifier;
use crate::command::shell_word;

/// The counter table's name.
pub const COUNTER: &str = "_tm_seq";

/// Stands for the greatest rowid of an empty table, written so that SQLite reads it as an integer.
pub(super) const NO_ROWID: &str = "(-9223372036854775807 - 1)";

/// Which variant to build. Tests build the others to prove that they are caught.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The real one.
    Exact,
    /// AFTER triggers alone, images from OLD and NEW: the obvious scheme, which is wrong.
    AfterOnly,
    /// Without the look for displaced rows.
    NoSweep,
    /// Without the high rowid: chains break under an application's trigger.
    NoTop,
}

/// One object: its kind and name in `sqlite_schema` and its SQL, exactly as SQLite stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) sql: String,
    /// How a trigger's name begins. What follows is for people, and another version wrote another text.
    pub(super) stem: String,
}

impl Object {
    /// Its SQL under another name.
    pub(super) fn sql_as(&self, name: &str) -> String {
        self.sql.replacen(&identifier(&self.name), &identifier(name), 1)
    }
}

/// What the name of each present trigger holds; those that another version named have another text.
pub(super) const CURE: &str = "tidemill sync release FILE ";

/// Name of the journal of `table`.
pub(super) fn journal_name(table: &str) -> String {
    format!("_tm_cap_{table}")
}

/// Name of the captured states of `table`.
pub(super) fn states_name(table: &str) -> String {
    format!("_tm_cand_{table}")
}

/// Name of the table that keeps the greatest rowid of `table`.
pub(super) fn top_name(table: &str) -> String {
    format!("_tm_top_{table}")
}

/// Every object of one table, in the order of creation.
pub(super) fn objects(info: &TableInfo, variant: Variant) -> Vec<Object> {
    let sql = Sql { info, variant };
    let mut all = sql.tables();
    all.extend(sql.triggers());
    all
}

struct Sql<'a> {
    info: &'a TableInfo,
    variant: Variant,
}

impl Sql<'_> {
    fn table(&self) -> String {
        identifier(&self.info.schema.name)
    }

    fn journal(&self) -> String {
        identifier(&journal_name(&self.info.schema.name))
    }

    fn states(&self) -> String {
        identifier(&states_name(&self.info.schema.name))
    }

    fn top(&self) -> String {
        identifier(&top_name(&self.info.schema.name))
    }

    fn column(&self, column: usize) -> String {
        identifier(&self.info.schema.columns[column].name)
    }

    /// `prefix0, prefix1, ..` for all columns.
    fn numbered(&self, prefix: &str) -> String {
        join(0..self.info.schema.columns.len(), ", ", |i| format!("{prefix}{i}"))
    }

    /// `source."a", source."b", ..` for all columns.
    fn named(&self, source: &str) -> String {
        join(0..self.info.schema.columns.len(), ", ", |i| format!("{source}.{}", self.column(i)))
    }

    /// All columns of `t`, the key columns from `image`, for a row that may be absent from `t`.
    fn named_with_key(&self, image: &str) -> String {
        join(0..self.info.schema.columns.len(), ", ", |i| {
            let source = if self.info.key.iter().any(|(key, _)| *key == i) { image } else { "t" };
            // A present row gives its own bytes: under NOCASE they may differ from the image's.
            if source == "t" {
                format!("t.{}", self.column(i))
            } else {
                format!("ifnull(t.{c}, {image}.{c})", c = self.column(i))
            }
        })
    }

    /// `t."k" = image."k"` under the key's collations.
    fn table_is(&self, image: &str) -> String {
        self.matches(&self.info.key, |i| format!("t.{}", self.column(i)), image)
    }

    /// `c.c0 = image."k"`.
    fn state_is(&self, image: &str) -> String {
        self.matches(&self.info.key, |i| format!("c.c{i}"), image)
    }

    fn matches(&self, columns: &[(usize, String)], left: impl Fn(usize) -> String, image: &str) -> String {
        join(columns, " AND ", |(i, collation)| {
            format!("{} COLLATE {collation} = {image}.{}", left(*i), self.column(*i))
        })
    }

    /// Whether OLD and NEW differ in these columns.
    fn moved(&self, columns: &[(usize, String)]) -> String {
        let any = join(columns, " OR ", |(i, collation)| {
            format!("OLD.{c} COLLATE {collation} IS NOT NEW.{c}", c = self.column(*i))
        });
        format!("({any})")
    }

    /// A column of `t` that is never NULL in a row that is there.
    fn present(&self) -> String {
        match self.info.key.first() {
            Some((key, _)) => format!("t.{} IS NOT NULL", self.column(*key)),
            None => "0".into(),
        }
    }

    /// The captured state of a row of `t` that is not among the states: present, unless its AFTER INSERT is due.
    fn live(&self) -> String {
        match self.info.key.first() {
            Some((key, _)) if self.info.rowid_alias && self.variant != Variant::NoTop => {
                format!("ifnull(t.{} <= (SELECT h.id FROM {} h), 0)", self.column(*key), self.top())
            }
            _ => self.present(),
        }
    }

    /// Whether the captured state is a row; NULL tells the reader that the key holds NULL, so no row can be found.
    fn had(&self, image: &str) -> String {
        let null = join(&self.info.key, " OR ", |(i, _)| format!("{image}.{} IS NULL", self.column(*i)));
        if self.info.rowid_alias {
            "ifnull(c.live, 0)".into()
        } else {
            format!("CASE WHEN {null} THEN NULL ELSE ifnull(c.live, 0) END")
        }
    }

    fn tables(&self) -> Vec<Object> {
        let (journal, states) = (self.journal(), self.states());
        let name = &self.info.schema.name;
        let mut all = vec![Object {
            kind: "table",
            name: journal_name(name),
            sql: format!(
                "CREATE TABLE {journal}(seq INTEGER PRIMARY KEY, had, has, {}, {})",
                self.numbered("b"),
                self.numbered("a")
            ),
            stem: String::new(),
        }];
        let key = join(&self.info.key, ", ", |(i, collation)| format!("c{i} COLLATE {collation}"));
        let columns = if let (true, Some((alias, _))) = (self.info.rowid_alias, self.info.key.first()) {
            join(0..self.info.schema.columns.len(), ", ", |i| {
                if i == *alias { format!("c{i} INTEGER PRIMARY KEY") } else { format!("c{i}") }
            })
        } else {
            format!("{}, UNIQUE({key})", self.numbered("c"))
        };
        all.push(Object {
            kind: "table",
            name: states_name(name),
            sql: format!("CREATE TABLE {states}(live, {columns})"),
            stem: String::new(),
        });
        for (number, unique) in self.info.uniques.iter().enumerate() {
            let index = format!("{}_{number}", states_name(name));
            let columns = join(&unique.columns, ", ", |(i, collation)| format!("c{i} COLLATE {collation}"));
            all.push(Object {
                kind: "index",
                sql: format!("CREATE INDEX {} ON {states}({columns})", identifier(&index)),
                name: index,
                stem: String::new(),
            });
        }
        if self.info.rowid_alias {
            let sql = format!("CREATE TABLE {}(id)", self.top());
            all.push(Object { kind: "table", name: top_name(name), sql, stem: String::new() });
        }
        all
    }

    fn triggers(&self) -> Vec<Object> {
        if self.variant == Variant::AfterOnly {
            return vec![
                self.trigger("ai", "AFTER INSERT", &self.plain(None, Some("NEW"))),
                self.trigger("au", "AFTER UPDATE", &self.plain(Some("OLD"), Some("NEW"))),
                self.trigger("ad", "AFTER DELETE", &self.plain(Some("OLD"), None)),
            ];
        }
        let moved = self.moved(&self.info.key);
        let mut before_insert = self.lower_top();
        before_insert.push(self.put_new_key(None));
        let mut before_update = vec![self.put_old(), self.put_new_key(Some(&moved))];
        let mut after_insert = Vec::new();
        let mut after_update = Vec::new();
        for unique in &self.info.uniques {
            before_insert.push(self.put_displaced(unique, None));
            before_update.push(self.put_displaced(unique, Some(&self.moved(&unique.columns))));
            if self.variant != Variant::NoSweep {
                after_insert.extend(self.sweep(unique));
                after_update.extend(self.sweep(unique));
            }
        }
        after_insert.extend(self.touch("NEW", None));
        after_update.extend(self.touch("OLD", Some(&moved)));
        after_update.extend(self.touch("NEW", None));
        vec![
            self.trigger("bi", "BEFORE INSERT", &before_insert),
            self.trigger("ai", "AFTER INSERT", &after_insert),
            self.trigger("bu", "BEFORE UPDATE", &before_update),
            self.trigger("au", "AFTER UPDATE", &after_update),
            self.trigger("bd", "BEFORE DELETE", &[self.put_old()]),
            self.trigger("ad", "AFTER DELETE", &self.touch("OLD", None)),
        ]
    }

    /// The name carries the cure: SQLite prints it when it refuses ALTER TABLE DROP COLUMN because of the trigger.
    fn trigger(&self, short: &str, when: &str, body: &[String]) -> Object {
        let table = &self.info.schema.name;
        let (stem, word) = (format!("_tm_{short}_{table} ("), shell_word(table));
        let name =
            format!("{stem}to alter this table: {CURE}{word}; alter it; tidemill sync run FILE --recopy {word})");
        let sql =
            format!("CREATE TRIGGER {} {when} ON {} BEGIN {}; END", identifier(&name), self.table(), body.join("; "));
        Object { kind: "trigger", name, sql, stem }
    }

    /// Rows at the end were deleted: SQLite will choose rowids below the top again.
    fn lower_top(&self) -> Vec<String> {
        let Some((key, _)) = self.info.key.first().filter(|_| self.info.rowid_alias) else { return Vec::new() };
        let max = format!("(SELECT ifnull(max(t.{}), {NO_ROWID}) FROM {} t)", self.column(*key), self.table());
        vec![format!("UPDATE {} SET id = {max} WHERE id > {max}", self.top())]
    }

    /// Puts OLD's row as it is in the table.
    fn put_old(&self) -> String {
        format!(
            "INSERT INTO {}(live, {}) SELECT {}, {} FROM {} t WHERE {} AND NOT EXISTS (SELECT 1 FROM {} c WHERE {})",
            self.states(),
            self.numbered("c"),
            self.live(),
            self.named("t"),
            self.table(),
            self.table_is("OLD"),
            self.states(),
            self.state_is("OLD")
        )
    }

    /// Puts the state of NEW's key: the row that NEW would displace through the key, or "absent".
    fn put_new_key(&self, guard: Option<&str>) -> String {
        format!(
            "INSERT INTO {}(live, {}) SELECT {}, {} FROM (SELECT 1) LEFT JOIN {} t ON {} WHERE {}NOT EXISTS (SELECT 1 FROM {} c WHERE {})",
            self.states(),
            self.numbered("c"),
            self.live(),
            self.named_with_key("NEW"),
            self.table(),
            self.table_is("NEW"),
            guard.map(|g| format!("{g} AND ")).unwrap_or_default(),
            self.states(),
            self.state_is("NEW")
        )
    }

    /// Puts the row that NEW would displace through `unique`.
    fn put_displaced(&self, unique: &Unique, guard: Option<&str>) -> String {
        let conflict = self.matches(&unique.columns, |i| format!("t.{}", self.column(i)), "NEW");
        format!(
            "INSERT INTO {}(live, {}) SELECT {}, {} FROM {} t WHERE {}{conflict} AND NOT EXISTS (SELECT 1 FROM {} c WHERE {})",
            self.states(),
            self.numbered("c"),
            self.live(),
            self.named("t"),
            self.table(),
            guard.map(|g| format!("{g} AND ")).unwrap_or_default(),
            self.states(),
            self.state_is("t")
        )
    }

    /// Journals the row that NEW displaced through `unique`. There is at most one: its image in the states is in
    /// step with the table until it goes, and the table held one row of these values.
    fn sweep(&self, unique: &Unique) -> [String; 3] {
        let states = self.states();
        let conflict = self.matches(&unique.columns, |i| format!("c.c{i}"), "NEW");
        let own = join(&self.info.key, " AND ", |(i, collation)| {
            format!("t.{} COLLATE {collation} = c.c{i}", self.column(*i))
        });
        let gone = format!("{conflict} AND c.live = 1 AND NOT EXISTS (SELECT 1 FROM {} t WHERE {own})", self.table());
        [
            format!("UPDATE {COUNTER} SET n = n + 1 WHERE EXISTS (SELECT 1 FROM {states} c WHERE {gone})"),
            format!(
                "INSERT INTO {}(seq, had, has, {}) SELECT s.n, 1, 0, {} FROM {states} c, {COUNTER} s WHERE {gone} LIMIT 1",
                self.journal(),
                self.numbered("b"),
                self.numbered("c.c")
            ),
            format!("UPDATE {states} SET live = 0 WHERE rowid = (SELECT c.rowid FROM {states} c WHERE {gone} LIMIT 1)"),
        ]
    }

    /// Journals the difference between the captured state of `image`'s key and the table, and brings the state up to it.
    fn touch(&self, image: &str, guard: Option<&str>) -> [String; 4] {
        let alone = guard.map(|g| format!(" WHERE {g}")).unwrap_or_default();
        let (states, table) = (self.states(), self.table());
        [
            format!("UPDATE {COUNTER} SET n = n + 1{alone}"),
            format!(
                "INSERT INTO {}(seq, had, has, {}, {}) SELECT s.n, {}, {}, {}, {} FROM {COUNTER} s \
                 LEFT JOIN {states} c ON {} LEFT JOIN {table} t ON {}{alone}",
                self.journal(),
                self.numbered("b"),
                self.numbered("a"),
                self.had(image),
                self.present(),
                self.numbered("c.c"),
                self.named("t"),
                self.state_is(image),
                self.table_is(image)
            ),
            format!(
                "DELETE FROM {states} WHERE rowid = (SELECT c.rowid FROM {states} c WHERE {}{})",
                self.state_is(image),
                guard.map(|g| format!(" AND {g}")).unwrap_or_default()
            ),
            format!(
                "INSERT INTO {states}(live, {}) SELECT {}, {} FROM (SELECT 1) LEFT JOIN {table} t ON {}{alone}",
                self.numbered("c"),
                self.present(),
                self.named_with_key(image),
                self.table_is(image)
            ),
        ]
    }

    /// The obvious trigger body of the sabotage twin.
    fn plain(&self, before: Option<&str>, after: Option<&str>) -> Vec<String> {
        let nulls = join(0..self.info.schema.columns.len(), ", ", |_| "NULL".into());
        let image = |source: Option<&str>| source.map_or_else(|| nulls.clone(), |source| self.named(source));
        vec![
            format!("UPDATE {COUNTER} SET n = n + 1"),
            format!(
                "INSERT INTO {}(seq, had, has, {}, {}) SELECT s.n, {}, {}, {}, {} FROM {COUNTER} s",
                self.journal(),
                self.numbered("b"),
                self.numbered("a"),
                u8::from(before.is_some()),
                u8::from(after.is_some()),
                image(before),
                image(after)
            ),
        ]
    }
}

fn join<T>(items: impl IntoIterator<Item = T>, separator: &str, text: impl Fn(T) -> String) -> String {
    items.into_iter().map(text).collect::<Vec<_>>().join(separator)
}

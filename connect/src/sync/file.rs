//! Sync files: `[sync.NAME]` with `from`, `to` and `tables`.

use std::path::{Path, PathBuf};

use tidemill_core::{suggest::nearest, topic};

use crate::{
    Error, Result,
    command::{with_file, with_sync},
    connector::SinkConnector,
    endpoint::{Endpoint, Secret},
    patterns::NOT,
    target::existing::OnExisting,
};

const KEYS: [&str; 5] = ["from", "to", "tables", "on_existing", "connections"];
/// How many connections apply large batches, where the file does not say.
const CONNECTIONS: u32 = 4;
/// And at most.
const MAX_CONNECTIONS: u32 = 32;
const ENDPOINT_KEYS: [&str; 2] = ["url", "password"];

/// One sync of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncSpec {
    /// Its name; the schema's name in SQL.
    pub name: String,
    /// Where rows come from.
    pub from: Endpoint,
    /// Where rows go.
    pub to: Endpoint,
    /// Patterns of table names, and with a `!` before them of those to leave out.
    pub tables: Vec<String>,
    /// What becomes of tables of the target that exist and that the sync does not own.
    pub on_existing: OnExisting,
    /// How many connections apply a large batch of changes at once.
    pub connections: u32,
    /// The file it came from, as the user named it.
    pub file: PathBuf,
    /// Whether the file has no other sync: then its commands need not name it.
    pub alone: bool,
}

impl SyncSpec {
    /// Its target.
    ///
    /// # Errors
    /// As [`Endpoint::sink`].
    pub fn sink(&self) -> Result<Box<dyn SinkConnector>> {
        self.to.sink_with(self.on_existing)
    }

    /// A message whose commands mean this sync of its file. They say `FILE` still.
    pub fn named(&self, text: &str) -> String {
        if self.alone { text.to_owned() } else { with_sync(text, &self.name) }
    }

    /// As [`SyncSpec::named`], with the sync file's name.
    pub fn typed(&self, text: &str) -> String {
        with_file(&self.named(text), &self.file)
    }

    /// As [`SyncSpec::typed`], of an error's message.
    pub(super) fn typed_error(&self, error: &Error) -> Error {
        Error::new(error.kind(), self.typed(&error.to_string()))
    }

    /// Whether its passwords are where the file says.
    ///
    /// # Errors
    /// `Invalid` names the file, the key, and the variable or file that is not there.
    pub fn check_passwords(&self) -> Result<()> {
        for (key, endpoint) in [("from", &self.from), ("to", &self.to)] {
            endpoint.check_password().map_err(|error| {
                let (file, sync) = (self.file.display(), &self.name);
                Error::invalid(format!("{file}: sync.{sync}.{key}: {}", error.message()))
            })?;
        }
        Ok(())
    }
}

/// Reads all syncs of a file. Paths in it are relative to its folder.
///
/// # Errors
/// `Invalid` names the file and the key; a misspelt key is told with the nearest right one.
pub fn load(path: &Path) -> Result<Vec<SyncSpec>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?;
    parse_text(path, &text)
}

/// As [`load`], of the text that the file had.
///
/// # Errors
/// As [`load`].
pub fn parse_text(path: &Path, text: &str) -> Result<Vec<SyncSpec>> {
    let named = |message: String| Error::invalid(format!("{}: {message}", path.display()));
    // The parser's own message would show the line, and a password in it.
    let fault = |e: toml::de::Error| {
        let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        named(format!("line {line}: {}", e.message()))
    };
    let table: toml::Table = text.parse().map_err(fault)?;
    parse(path, &table).map_err(|e| named(e.message().to_owned()))
}

fn parse(path: &Path, table: &toml::Table) -> Result<Vec<SyncSpec>> {
    known_keys("", table, &["sync"])?;
    let syncs = table.get("sync").and_then(toml::Value::as_table);
    let syncs = syncs.filter(|syncs| !syncs.is_empty()).ok_or_else(|| Error::invalid("no [sync.NAME] in it"))?;
    let mut specs: Vec<SyncSpec> =
        syncs.iter().map(|(name, value)| parse_sync(path, name, value)).collect::<Result<_>>()?;
    let alone = specs.len() == 1;
    specs.iter_mut().for_each(|spec| spec.alone = alone);
    Ok(specs)
}

/// Those of a file's syncs that are named; all where none is.
///
/// # Errors
/// `NotFound` with the nearest name.
pub fn select(specs: Vec<SyncSpec>, names: &[String]) -> Result<Vec<SyncSpec>> {
    let known: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        let file = specs.first().map(|spec| spec.file.display().to_string()).unwrap_or_default();
        let hint = nearest(unknown, known.iter().copied()).map(|name| format!("; did you mean {name}?"));
        let hint = hint.unwrap_or_else(|| format!("; it has {}", known.join(", ")));
        return Err(Error::not_found(format!("{file} has no sync {unknown}{hint}")));
    }
    Ok(specs.into_iter().filter(|spec| names.is_empty() || names.contains(&spec.name)).collect())
}

fn parse_sync(path: &Path, name: &str, value: &toml::Value) -> Result<SyncSpec> {
    topic::validate_name(name).map_err(|_| Error::invalid(format!("sync name {name:?} may hold A-Z a-z 0-9 . _ -")))?;
    if name.starts_with(topic::INTERNAL_PREFIX) || name.contains('.') || name == "public" {
        return Err(Error::invalid(format!("sync name {name:?} is not allowed: no dots, not public")));
    }
    let table = value.as_table().ok_or_else(|| Error::invalid(format!("sync.{name} is not a table")))?;
    known_keys(&format!("sync.{name}."), table, &KEYS)?;
    let get = |key: &str| table.get(key).ok_or_else(|| Error::invalid(format!("sync.{name}.{key} is missing")));
    let folder = path.parent().unwrap_or(Path::new(""));
    let endpoint = |key: &str| parse_endpoint(&format!("sync.{name}.{key}"), get(key)?, folder);
    let patterns =
        get("tables")?.as_array().ok_or_else(|| Error::invalid(format!("sync.{name}.tables is not a list")))?;
    let pattern = |value: &toml::Value| match value.as_str() {
        Some(text) if !text.trim_start_matches(NOT).is_empty() => Ok(text.to_owned()),
        _ => Err(Error::invalid(format!("sync.{name}.tables holds {value}, not the name of a table"))),
    };
    let tables: Vec<_> = patterns.iter().map(pattern).collect::<Result<_>>()?;
    if tables.is_empty() {
        return Err(Error::invalid(format!("sync.{name}.tables is empty; [\"*\"] names all tables")));
    }
    if tables.iter().all(|pattern| pattern.starts_with(NOT)) {
        return Err(Error::invalid(format!("sync.{name}.tables only leaves tables out; add \"*\" for all others")));
    }
    let on_existing = table.get("on_existing").map_or(Ok(OnExisting::default()), |value| {
        parse_on_existing(value).map_err(|e| Error::invalid(format!("sync.{name}.on_existing {}", e.message())))
    })?;
    let connections = table.get("connections").map_or(Ok(CONNECTIONS), |value| {
        let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
        number.filter(|number| (1..=MAX_CONNECTIONS).contains(number)).ok_or_else(|| {
            Error::invalid(format!("sync.{name}.connections is {value}, and may be 1 to {MAX_CONNECTIONS}"))
        })
    })?;
    let (from, to) = (endpoint("from")?, endpoint("to")?);
    let (name, file) = (name.to_owned(), path.to_owned());
    Ok(SyncSpec { name, from, to, tables, on_existing, connections, file, alone: true })
}

fn parse_on_existing(value: &toml::Value) -> Result<OnExisting> {
    let word = value.as_str().unwrap_or_default();
    OnExisting::parse(word).ok_or_else(|| {
        let words = OnExisting::WORDS.map(|word| format!("{word:?}")).join(", ");
        let hint = nearest(word, OnExisting::WORDS).map(|word| format!("; did you mean {word:?}?"));
        Error::invalid(format!("is {value}, and may be {words}{}", hint.unwrap_or_default()))
    })
}

fn parse_endpoint(key: &str, value: &toml::Value, folder: &Path) -> Result<Endpoint> {
    let (url, password) = match value {
        toml::Value::String(url) => (url.as_str(), None),
        toml::Value::Table(table) => {
            known_keys(&format!("{key}."), table, &ENDPOINT_KEYS)?;
            let text = |name: &str| match table.get(name) {
                None => Ok(None),
                // What stands there may be a password: it is not printed.
                Some(value) => {
                    value.as_str().map(Some).ok_or_else(|| Error::invalid(format!("{key}.{name} is no text")))
                }
            };
            let url = text("url")?.ok_or_else(|| Error::invalid(format!("{key}.url is missing")))?;
            (url, text("password")?)
        }
        _ => return Err(Error::invalid(format!("{key} is neither a URL nor a table with one"))),
    };
    let password = password.map(|text| Secret::parse(text, folder)).transpose();
    let endpoint = password.and_then(|password| Endpoint::parse(url, password, folder));
    endpoint.map_err(|e| Error::invalid(format!("{key}: {}", e.message())))
}

fn known_keys(prefix: &str, table: &toml::Table, known: &[&str]) -> Result<()> {
    let Some(unknown) = table.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    let hint = match nearest(unknown, known.iter().copied()) {
        Some(name) => format!("did you mean {prefix}{name}?"),
        None => format!("known are {}", known.join(", ")),
    };
    Err(Error::invalid(format!("unknown key {prefix}{unknown}; {hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<SyncSpec>> {
        parse(Path::new("dir/shop.toml"), &text.parse().expect("toml"))
    }

    #[test]
    fn four_lines_are_enough() {
        let specs =
            parsed("[sync.shop]\nfrom = 'sqlite:a.db'\nto = { url = 'sqlite:/x/b.db' }\ntables = ['*']").expect("good");
        assert_eq!(specs[0].from, Endpoint::Sqlite("dir/a.db".into()));
        assert_eq!(specs[0].to, Endpoint::Sqlite("/x/b.db".into()));
        assert_eq!(specs[0].on_existing, OnExisting::Refuse);
    }

    #[test]
    fn one_sync_of_a_file_is_named_where_it_has_several() {
        let sync = |name: &str| format!("[sync.{name}]\nfrom='sqlite:a'\nto='sqlite:{name}'\ntables=['*']\n");
        let (one, two) = (parsed(&sync("x")).expect("good"), parsed(&(sync("xx") + &sync("yy"))).expect("good"));
        assert_eq!(one[0].typed("tidemill sync run FILE --replace"), "tidemill sync run dir/shop.toml --replace");
        assert_eq!(two[1].typed("tidemill sync rm FILE"), "tidemill sync rm dir/shop.toml --sync yy");
        let names = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            select(two.clone(), &names).map(|specs| specs.into_iter().map(|spec| spec.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).expect("all"), ["xx", "yy"]);
        assert_eq!(names(&["yy"]).expect("one"), ["yy"]);
        assert!(names(&["xy"]).expect_err("none").to_string().contains("dir/shop.toml has no sync xy; did you mean"));
        assert!(names(&["other"]).expect_err("none").to_string().contains("it has xx, yy"));
    }

    #[test]
    fn faults_are_named() {
        let sync = |lines: &str| format!("[sync.shop]\nfrom='sqlite:a'\nto='sqlite:b'\ntables=['*']\n{lines}");
        for (text, expected) in [
            (String::new(), "no [sync.NAME]"),
            ("[snyc.shop]".into(), "did you mean sync?"),
            (sync("tabels = 1"), "unknown key sync.shop.tabels; did you mean sync.shop.tables?"),
            (sync("password = 1"), "known are from, to, tables, on_existing, connections"),
            (sync("connections = 0"), "sync.shop.connections is 0, and may be 1 to 32"),
            (sync("connections = 'many'"), "sync.shop.connections is \"many\", and may be 1 to 32"),
            (sync("on_existing = 'merg'"), "may be \"refuse\", \"merge\", \"replace\"; did you mean \"merge\"?"),
            (
                sync("on_existing = true"),
                "sync.shop.on_existing is true, and may be \"refuse\", \"merge\", \"replace\"",
            ),
            ("[sync.shop]\nto='sqlite:b'\ntables=['*']".into(), "sync.shop.from is missing"),
            ("[sync.shop]\nfrom='sqlite:'\nto='sqlite:b'\ntables=['*']".into(), "names no file"),
            ("[sync.shop]\nfrom=1\nto='sqlite:b'\ntables=['*']".into(), "neither a URL nor a table"),
            ("[sync.shop]\nfrom={url='sqlite:a',password='x'}\nto='sqlite:b'\ntables=['*']".into(), "has no password"),
            ("[sync.shop]\nfrom={url='mysql://h/d',pasword='x'}\nto='sqlite:b'\ntables=['*']".into(), "from.password?"),
            ("[sync.shop]\nfrom='oracle:x'\nto='sqlite:b'\ntables=['*']".into(), "\"oracle\" is not a known kind"),
            ("[sync.shop]\nfrom='sqlite:a'\nto='sqlite:b'\ntables=[]".into(), "tables is empty"),
            ("[sync.shop]\nfrom='sqlite:a'\nto='sqlite:b'\ntables=[1]".into(), "not the name of a table"),
            ("[sync.shop]\nfrom='sqlite:a'\nto='sqlite:b'\ntables=['!']".into(), "not the name of a table"),
            ("[sync.shop]\nfrom='sqlite:a'\nto='sqlite:b'\ntables=['!t']".into(), "add \"*\" for all others"),
            ("[sync.'a.b']\nfrom='sqlite:a'\nto='sqlite:b'\ntables=['*']".into(), "not allowed"),
        ] {
            let error = parsed(&text).expect_err(&text).to_string();
            assert!(error.contains(expected), "{error} does not say {expected}");
        }
    }
}

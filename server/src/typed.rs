//! Commands inside messages, as they are to be typed where they are read.
//!
//! A connector says `tidemill sync run FILE --recopy t`. Only who prints it knows the sync file's name, how the reader
//! reaches the log, and whether a server runs the sync: then it is `tidemill sync apply` that takes it up.

use std::path::Path;

use tidemill_connect::command::shell_word;
use tidemill_core::Error;

use crate::cli::{Owned, Target};

const SYNC: &str = "tidemill sync ";
const START: &str = "tidemill start";
/// Commands of a sync file, and whether they work on a log.
const VERBS: [(&str, bool); 10] = [
    ("run", true),
    ("apply", true),
    ("rm", true),
    ("status", true),
    ("retry", true),
    ("skip", true),
    ("check", false),
    ("verify", false),
    ("plan", false),
    ("release", false),
];

/// Where a message is read.
#[derive(Debug, Clone)]
pub struct Typed {
    /// The sync file, as a word of a command line.
    file: Option<String>,
    /// What names the log on a command line.
    log: String,
    /// Whether a server runs the syncs.
    served: bool,
}

impl Typed {
    /// On a command line that names the log like this.
    pub fn by(target: &Target) -> Self {
        let log = match (&target.url, &target.server) {
            (Some(url), _) => format!("--log {}", shell_word(url)),
            (None, Some(server)) => format!("--server {}", shell_word(server)),
            (None, None) => format!("--data-dir {}", shell_word(&target.data_dir.to_string_lossy())),
        };
        Self { file: None, log, served: false }
    }

    /// Of a log that the command owns, or takes its turn on.
    pub fn of(log: &Owned) -> Self {
        Self::by(&Target { data_dir: log.data_dir.clone(), server: None, url: log.url.clone() })
    }

    /// Of a log in this folder.
    pub fn of_folder(data_dir: &Path) -> Self {
        Self::by(&Target { data_dir: data_dir.to_owned(), server: None, url: None })
    }

    /// Of a log that is not known: what a command would take by itself may be another one.
    pub fn of_unknown() -> Self {
        Self::of_folder(Path::new("DIR"))
    }

    /// With the sync file's name.
    pub fn file(mut self, file: &Path) -> Self {
        self.file = Some(shell_word(&file.to_string_lossy()));
        self
    }

    /// Where a server runs the syncs, or does not.
    pub fn served(mut self, served: bool) -> Self {
        self.served = served;
        self
    }

    /// A message with its commands as they are typed. What another process put in for its own readers is replaced.
    pub fn text(&self, text: &str) -> String {
        let (mut out, mut rest) = (String::with_capacity(text.len()), text);
        while let Some(at) = rest.find("tidemill s") {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let (said, length) = self.command(rest).unwrap_or_else(|| ("tidemill s".to_owned(), "tidemill s".len()));
            out.push_str(&said);
            rest = &rest[length..];
        }
        out + rest
    }

    /// As [`Typed::text`], of an error's message. Another's errors are left as they are.
    pub fn error(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref::<Error>() {
            Some(known) => self.known(known).into(),
            None => error,
        }
    }

    /// As [`Typed::error`].
    pub fn known(&self, error: &Error) -> Error {
        Error::new(error.kind(), self.text(&error.to_string()))
    }

    /// The command that a text begins with, as it is typed, and how long it is in the text.
    fn command(&self, text: &str) -> Option<(String, usize)> {
        if let Some(rest) = text.strip_prefix(START) {
            let known = self.log.starts_with("--data-dir") && !rest.starts_with(" --");
            let whole = !rest.starts_with(|c: char| c.is_alphanumeric());
            return (known && whole).then(|| (format!("{START} {}", self.log), START.len()));
        }
        let after = text.strip_prefix(SYNC)?;
        let verb = &after[..word_length(after)];
        let (_, on_log) = VERBS.iter().find(|(known, _)| *known == verb)?;
        let shown = if self.served && verb == "run" { "apply" } else { verb };
        let mut length = SYNC.len() + verb.len();
        let mut said = format!("{SYNC}{shown}");
        if let Some(after) = text[length..].strip_prefix(' ')
            && let Some(word) = self.file_word(&after[..word_length(after)])
        {
            said = format!("{said} {word}");
            length += 1 + word_length(after);
        } else if verb != "status" {
            return None;
        }
        for option in [" --data-dir ", " --server ", " --log "] {
            if let Some(after) = text[length..].strip_prefix(option) {
                length += option.len() + word_length(after);
            }
        }
        Some((if *on_log { format!("{said} {}", self.log) } else { said }, length))
    }

    /// The file that a word stands for; none where it is no file but a word of the message.
    fn file_word(&self, word: &str) -> Option<String> {
        match &self.file {
            file if word == "FILE" => Some(file.clone().unwrap_or_else(|| word.to_owned())),
            Some(file) if word == file => Some(word.to_owned()),
            _ => word.trim_start_matches('\'').starts_with('/').then(|| word.to_owned()),
        }
    }
}

/// How long the shell's word is that a text begins with, as [`shell_word`] writes it.
fn word_length(text: &str) -> usize {
    let plain = |c: char| c.is_alphanumeric() || "_-./".contains(c);
    if !text.starts_with('\'') {
        return text.find(|c| !plain(c)).unwrap_or(text.len());
    }
    let mut at = 1;
    while let Some(end) = text[at..].find('\'') {
        at += end + 1;
        match text[at..].strip_prefix("\\''") {
            Some(_) => at += 3,
            None => return at,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(server: Option<&str>) -> Target {
        Target { data_dir: "my log".into(), server: server.map(str::to_owned), url: None }
    }

    #[test]
    fn commands_are_those_that_work_where_they_are_read() {
        let local = Typed::by(&target(None)).file(Path::new("s.toml"));
        for (said, typed) in [
            (
                "first tidemill sync rm FILE, then tidemill sync run FILE --replace; FILE",
                "first tidemill sync rm s.toml --data-dir 'my log', then tidemill sync run s.toml --data-dir 'my log' --replace; FILE",
            ),
            ("tidemill sync run s.toml --recopy t", "tidemill sync run s.toml --data-dir 'my log' --recopy t"),
            ("why: tidemill sync status", "why: tidemill sync status --data-dir 'my log'"),
            ("start one with tidemill start, or", "start one with tidemill start --data-dir 'my log', or"),
            ("tidemill sync release FILE t", "tidemill sync release s.toml t"),
            ("tidemill sync rm removes, tidemill started", "tidemill sync rm removes, tidemill started"),
            ("a tidemill sync", "a tidemill sync"),
        ] {
            assert_eq!(local.text(said), typed);
            assert_eq!(local.text(typed), typed, "once is enough");
        }
    }

    #[test]
    fn a_readers_own_way_to_the_log_replaces_the_servers() {
        let server = Typed::of_folder(Path::new("/var/it's")).file(Path::new("/etc/s.toml")).served(true);
        let said = server.text("tidemill sync run FILE --recopy t");
        assert_eq!(said, r"tidemill sync apply /etc/s.toml --data-dir '/var/it'\''s' --recopy t");
        let remote = Typed::by(&target(Some("http://h:1")));
        assert_eq!(remote.text(&said), "tidemill sync apply /etc/s.toml --server 'http://h:1' --recopy t");
    }
}

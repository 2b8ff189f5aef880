//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use tidemill_core::{Error, ErrorKind};

/// Address of the HTTP API unless another is asked for.
pub const HTTP_DEFAULT: &str = "127.0.0.1:7600";

/// Folder of the log unless another is named.
pub const DATA_DIR_DEFAULT: &str = "tidemill-data";

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 error, or the sides differ, 2 usage, 3 not found, 4 conflict: a person must decide,
69 not reachable now, 77 denied, 78 fault in a sync file, 130 interrupted twice";

/// One durable log; databases kept in step through it, and SQL over it.
#[derive(Debug, Parser)]
#[command(name = "tidemill", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// Which log a command works on.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Folder of the log; what writes makes one. If another process owns it, that one is asked.
    #[arg(long, env = "TIDEMILL__DATA_DIR", default_value = DATA_DIR_DEFAULT, global = true)]
    pub data_dir: PathBuf,
    /// Ask a server instead, for example http://127.0.0.1:7600
    #[arg(long, env = "TIDEMILL__SERVER", global = true, conflicts_with = "data_dir")]
    pub server: Option<String>,
    /// The log by its URL: file:PATH is the folder PATH; kafka://HOST:PORT[,HOST:PORT...] is for `sync run` and `sync rm`
    #[arg(long = "log", value_name = "URL", global = true, conflicts_with_all = ["data_dir", "server"])]
    pub url: Option<String>,
}

impl Target {
    fn place(&mut self, refused: Option<&str>) -> Result<(), Error> {
        place(&mut self.url, &mut self.data_dir, refused)
    }
}

/// A log that the command must own.
#[derive(Debug, Clone, Args)]
pub struct Owned {
    /// Folder of the log; made where it does not exist
    #[arg(long, env = "TIDEMILL__DATA_DIR", default_value = DATA_DIR_DEFAULT)]
    pub data_dir: PathBuf,
    /// The log by its URL: file:PATH is the folder PATH; kafka://HOST:PORT[,HOST:PORT...] is a cluster, for `sync run`
    #[arg(long = "log", value_name = "URL", conflicts_with = "data_dir")]
    pub url: Option<String>,
}

impl Owned {
    fn place(&mut self, refused: Option<&str>) -> Result<(), Error> {
        place(&mut self.url, &mut self.data_dir, refused)
    }
}

/// Takes a log's URL: one of a folder becomes the folder, one of a cluster stays where the command can do with it. A URL
/// is not repeated in errors: it may hold a password.
fn place(url: &mut Option<String>, data_dir: &mut PathBuf, refused: Option<&str>) -> Result<(), Error> {
    let Some(given) = url.as_deref() else { return Ok(()) };
    if given.starts_with("kafka://") {
        return match refused {
            None => Ok(()),
            Some(command) => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "tidemill {command} does not work over kafka:// yet; tidemill sync run and tidemill sync rm do"
                ),
            )),
        };
    }
    let path = given.strip_prefix("file:").map(|path| path.strip_prefix("//").unwrap_or(path));
    let path = path.filter(|path| !path.is_empty() && (path.starts_with('/') || !given.starts_with("file://")));
    let path = path.ok_or_else(|| Error::invalid("--log takes file:PATH or kafka://HOST:PORT[,HOST:PORT...]"))?;
    *data_dir = PathBuf::from(path);
    *url = None;
    Ok(())
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep databases in step
    #[command(subcommand)]
    Sync(Sync),
    /// Ask a question in SQL; a shell without one
    Sql(Sql),
    /// List, make, change and delete topics
    #[command(subcommand)]
    Topic(Topic),
    /// Append lines from standard input to a topic
    Produce(Produce),
    /// Print a topic's records
    Consume(Consume),
    /// Own a log and serve its API over HTTP
    Start(Start),
    /// A small shop: kept in step, added up by a stream job, shown live
    Demo(Demo),
    /// Groups: how far they have read, where they go on
    #[command(subcommand)]
    Group(Group),
    /// Examine a log's files at rest
    #[command(subcommand)]
    Log(Log),
    /// Examine this machine: disk, file system, limits
    Doctor(Doctor),
    /// Measure the log on this machine
    #[command(subcommand)]
    Bench(Bench),
}

impl Command {
    /// Takes the URL of a log where one is given.
    ///
    /// # Errors
    /// `Invalid` for what is no URL of a log; `Unsupported` where the command does not work over such a log.
    pub fn place(&mut self) -> Result<(), Error> {
        match self {
            Self::Sync(sync) => match sync {
                Sync::Run { log, .. } => log.place(None),
                Sync::Rm { log, .. } => log.place(None),
                Sync::Apply { log, .. } => log.place(Some("sync apply")),
                Sync::Status { log, .. } => log.place(Some("sync status")),
                Sync::Retry { log, .. } => log.place(Some("sync retry")),
                Sync::Skip { log, .. } => log.place(Some("sync skip")),
                Sync::Check { .. } | Sync::Plan { .. } | Sync::Verify { .. } | Sync::Release { .. } => Ok(()),
            },
            Self::Sql(sql) => sql.log.place(Some("sql")),
            Self::Topic(
                Topic::List { log, .. }
                | Topic::Create { log, .. }
                | Topic::Config { log, .. }
                | Topic::Grow { log, .. }
                | Topic::Delete { log, .. },
            ) => log.place(Some("topic")),
            Self::Group(
                Group::List { log, .. }
                | Group::Describe { log, .. }
                | Group::Reset { log, .. }
                | Group::Delete { log, .. },
            ) => log.place(Some("group")),
            Self::Log(Log::Verify { log, .. }) => log.place(Some("log verify")),
            Self::Log(Log::Backup { log, .. }) => log.place(Some("log backup")),
            Self::Produce(produce) => produce.log.place(Some("produce")),
            Self::Consume(consume) => consume.log.place(Some("consume")),
            Self::Start(start) => start.log.place(Some("start")),
            Self::Log(Log::Dump { .. }) | Self::Doctor(_) | Self::Demo(_) | Self::Bench(_) => Ok(()),
        }
    }
}

/// The syncs that a command is about.
#[derive(Debug, Clone, Args)]
pub struct SyncFile {
    /// The sync file
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// Only this sync of the file; may be given several times
    #[arg(long = "sync", value_name = "NAME")]
    pub syncs: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Sync {
    /// Run the syncs of a file until stopped
    Run {
        #[command(flatten)]
        file: SyncFile,
        /// Copy and end; installs nothing in the source
        #[arg(long)]
        once: bool,
        /// Copy this table anew, with its present columns
        #[arg(long, value_name = "TABLE")]
        recopy: Vec<String>,
        /// Drop the sync's tables in the target, whoever filled them, and copy them anew
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        log: Owned,
    },
    /// Examine both sides and say what would be in the way
    Check {
        #[command(flatten)]
        file: SyncFile,
        /// Folder of the sync's log: tells what only the log knows [default: tidemill-data, if there is a log]
        #[arg(long, env = "TIDEMILL__DATA_DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Show what a sync would make on both sides, and what the target cannot hold as it is
    Plan {
        #[command(flatten)]
        file: SyncFile,
    },
    /// Give the syncs of a file to a server, which runs them, also when it starts again
    Apply {
        #[command(flatten)]
        file: SyncFile,
        /// Copy this table anew, with its present columns
        #[arg(long, value_name = "TABLE")]
        recopy: Vec<String>,
        /// Drop the sync's tables in the target, whoever filled them, and copy them anew
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        log: Target,
    },
    /// How the syncs are: state, lag, progress, rows that the target refused
    Status {
        /// Only the syncs of this file
        file: Option<PathBuf>,
        /// Only this sync; may be given several times
        #[arg(long = "sync", value_name = "NAME")]
        syncs: Vec<String>,
        /// How to print it
        #[arg(short, long, default_value = "table")]
        output: StatusOutput,
        #[command(flatten)]
        log: Target,
    },
    /// Try the rows again that the target refused
    Retry {
        #[command(flatten)]
        file: SyncFile,
        #[command(flatten)]
        log: Target,
    },
    /// Give up what the target refused of one row; its later changes are applied again
    Skip {
        #[command(flatten)]
        file: SyncFile,
        /// The row's key, as status shows it
        key: String,
        #[command(flatten)]
        log: Target,
    },
    /// Compare source and target row by row
    Verify {
        #[command(flatten)]
        file: SyncFile,
        /// How long the target may take to have what the source has; without it as long as it gets on
        #[arg(long, value_name = "SECONDS")]
        wait: Option<f64>,
        /// Folder of the sync's log: tells what is on its way, and parked [default: tidemill-data, if there is a log]
        #[arg(long, env = "TIDEMILL__DATA_DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Remove the triggers from one table of the source, so that it can be altered; then run with --recopy TABLE
    Release {
        #[command(flatten)]
        file: SyncFile,
        /// The table, as the source names it
        table: String,
        /// Folder of the sync's log, for the commands that are printed [default: tidemill-data, if there is a log]
        #[arg(long, env = "TIDEMILL__DATA_DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Remove what the syncs of a file made in the source and in the log; target tables stay
    Rm {
        #[command(flatten)]
        file: SyncFile,
        /// Also remove a capture that this log does not know: its data directory was lost
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        log: Target,
    },
}

#[derive(Debug, Args)]
pub struct Sql {
    /// The query; without it a shell begins, or statements are read from standard input
    pub query: Option<String>,
    /// How to print the answer
    #[arg(short, long, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub log: Target,
}

/// How lists and answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
    Jsonl,
    Csv,
}

impl Output {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }
}

/// How the status is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusOutput {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Topic {
    /// All topics with their bounds
    List {
        /// How to print the list
        #[arg(short, long, default_value = "table")]
        output: Output,
        #[command(flatten)]
        log: Target,
    },
    /// Make a topic
    Create {
        /// Its name: A-Z a-z 0-9 . _ -
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Number of partitions
        #[arg(short, long, default_value_t = 1)]
        partitions: u32,
        /// A setting, as `topic config` shows them; may be given several times
        #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
        settings: Vec<(String, String)>,
        #[command(flatten)]
        log: Target,
    },
    /// Show a topic's settings, or change some
    Config {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Settings to change, such as retention.ms=7d; -1 lifts a limit
        #[arg(value_name = "NAME=VALUE", value_parser = setting)]
        settings: Vec<(String, String)>,
        /// A setting to set back to its default; may be given several times
        #[arg(long, value_name = "NAME")]
        unset: Vec<String>,
        /// How to print them
        #[arg(short, long, default_value = "table")]
        output: Output,
        #[command(flatten)]
        log: Target,
    },
    /// Add partitions to a topic; keys are dealt anew from then on
    Grow {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// How many it has then
        #[arg(short, long)]
        partitions: u32,
        #[command(flatten)]
        log: Target,
    },
    /// Delete a topic and its records
    Delete {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        #[command(flatten)]
        log: Target,
    },
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err("not NAME=VALUE; retention.ms=7d is one".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub enum Group {
    /// All groups that have members or offsets
    List {
        /// How to print the list
        #[arg(short, long, default_value = "table")]
        output: StatusOutput,
        #[command(flatten)]
        log: Target,
    },
    /// One group: its members, its offsets, how much and how long it is behind
    Describe {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// How to print it
        #[arg(short, long, default_value = "table")]
        output: StatusOutput,
        #[command(flatten)]
        log: Target,
    },
    /// Set where a group without members goes on in a topic
    Reset {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// The topic
        #[arg(long)]
        topic: String,
        /// Only this partition; may be given several times
        #[arg(long = "partition", value_name = "NUMBER")]
        partitions: Vec<u32>,
        /// earliest, latest, an offset, +N or -N from what is committed, or a time: 2026-11-22T09:30:00Z, -15m
        #[arg(long, allow_hyphen_values = true)]
        to: String,
        /// Print what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// How to print it
        #[arg(short, long, default_value = "table")]
        output: StatusOutput,
        #[command(flatten)]
        log: Target,
    },
    /// Forget a group without members, and its offsets
    Delete {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        #[command(flatten)]
        log: Target,
    },
}

#[derive(Debug, Subcommand)]
pub enum Log {
    /// Read all that a log holds and check every batch; changes nothing
    Verify {
        /// How to print it
        #[arg(short, long, default_value = "table")]
        output: StatusOutput,
        #[command(flatten)]
        log: Owned,
    },
    /// Copy a log into a folder while it goes on; the copy is a log itself
    Backup {
        /// A folder that is not there, or empty; with --server on the server's machine
        to: PathBuf,
        #[command(flatten)]
        log: Target,
    },
    /// Print what a file of a data directory says: superblock, manifest, commit log, segment, index
    Dump {
        /// The file
        file: PathBuf,
        /// Print the records too
        #[arg(short, long)]
        records: bool,
    },
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// The folder where a log is, or is to be
    #[arg(long, env = "TIDEMILL__DATA_DIR", default_value = ".")]
    pub data_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Produce {
    /// The topic; made with one partition where it does not exist
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub topic: String,
    /// What separates key and value in a line; without it lines have no key
    #[arg(short = 'K', long, value_name = "TEXT")]
    pub key_separator: Option<String>,
    #[command(flatten)]
    pub log: Target,
}

#[derive(Debug, Args)]
pub struct Consume {
    /// The topic
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub topic: String,
    /// Where to begin: start, end, an offset of every partition, or a time: 2026-11-22T09:30:00Z, -15m, @MILLISECONDS
    #[arg(long, default_value = "start", allow_hyphen_values = true)]
    pub from: String,
    /// End after this many records
    #[arg(short = 'n', long, value_name = "N")]
    pub count: Option<u64>,
    /// End when all records that were there at the start are printed
    #[arg(short = 'e', long)]
    pub exit: bool,
    /// Print the key and this text before each value
    #[arg(short = 'K', long, value_name = "TEXT", conflicts_with = "json")]
    pub key_separator: Option<String>,
    /// Print one JSON object a record: partition, offset, timestamp, key, value, headers
    #[arg(long)]
    pub json: bool,
    /// Print each record by this pattern: %t topic, %p partition, %o offset, %T time in ms, %k key, %s value, %K and %S
    /// their bytes (-1: null), %h headers, %% a percent sign; \n, \t, \r, \\, \xHH
    #[arg(short = 'f', long, value_name = "PATTERN", conflicts_with_all = ["json", "key_separator"])]
    pub format: Option<String>,
    #[command(flatten)]
    pub log: Target,
}

#[derive(Debug, Args)]
pub struct Start {
    /// Address of the HTTP API [default: 127.0.0.1:7600; left out, and named, where it is taken]
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub listen: Option<String>,
    #[command(flatten)]
    pub log: Owned,
}

fn host_and_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err(format!("not HOST:PORT; {HTTP_DEFAULT} is one")),
    }
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Write for this long, then compare everything; 0: until Ctrl-C
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Leave the files in this folder
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Durable appends: how many, how fast, how late; beside the disk's own fdatasync
    Log {
        /// Folder to write in; removed afterwards
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Numbers of partitions, each written by a producer of its own
        #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
        partitions: Vec<u32>,
        /// Seconds for each measurement
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Bytes of a record's value
        #[arg(long, default_value_t = 1024)]
        record_bytes: usize,
        /// Records of a batch where throughput is measured
        #[arg(long, default_value_t = 64)]
        batch_records: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(args: &[&str]) -> Result<Command, Error> {
        let args = ["tidemill"].iter().chain(args);
        let mut command = Cli::try_parse_from(args).expect("a command line").command;
        command.place().map(|()| command)
    }

    #[test]
    fn a_log_is_named_by_its_url() {
        for (url, folder) in
            [("file:./data", "./data"), ("file:data", "data"), ("file:///a/b", "/a/b"), ("file:/a", "/a")]
        {
            let Command::Start(start) = placed(&["start", "--log", url]).expect(url) else { panic!("start") };
            assert_eq!((start.log.data_dir, start.log.url), (PathBuf::from(folder), None));
            let Command::Sql(sql) = placed(&["sql", "select 1", "--log", url]).expect(url) else { panic!("sql") };
            assert_eq!(sql.log.data_dir, PathBuf::from(folder));
        }
        let url = "kafka://a:1,b:2";
        let Command::Sync(Sync::Run { log, .. }) = placed(&["sync", "run", "f", "--log", url]).expect(url) else {
            panic!("sync run")
        };
        assert_eq!(log.url.as_deref(), Some(url));
        for bad in ["data", "file:", "file://", "file://host/a", "https://me:secret@h", "kafka:h:1"] {
            let error = placed(&["sync", "run", "f", "--log", bad]).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let twice = ["tidemill", "sql", "--log", "file:a", "--data-dir", "b"];
        assert!(Cli::try_parse_from(twice).is_err(), "two logs");
    }

    #[test]
    fn what_does_not_work_over_kafka_says_so() {
        for (args, name) in [
            (&["sql", "select 1"][..], "sql"),
            (&["topic", "list"], "topic"),
            (&["produce", "t"], "produce"),
            (&["consume", "t"], "consume"),
            (&["start"], "start"),
            (&["sync", "apply", "f"], "sync apply"),
            (&["sync", "status"], "sync status"),
            (&["sync", "retry", "f"], "sync retry"),
            (&["sync", "skip", "f", "k"], "sync skip"),
        ] {
            let error = placed(&[args, &["--log", "kafka://me:secret@h:1"]].concat()).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().starts_with(&format!("tidemill {name} does not work over kafka://")), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}

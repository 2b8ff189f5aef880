//! The one error type of the project. Its kind says what the caller must do; the message names the thing and the limit.
//!
//! Every crate uses this type: an error crosses from the log through a connector to the command line unchanged,
//! and the exit code of a command is a function of the kind alone.

use std::fmt;

/// What the caller of a failed operation must do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong: change it.
    Invalid,
    /// The thing named does not exist: name another, or create it.
    NotFound,
    /// The state of the world contradicts the request: look, decide, ask again.
    Conflict,
    /// The caller may not do this: obtain the right.
    Denied,
    /// A resource outside is not there now: try again later.
    Unavailable,
    /// Stored bytes are damaged: repair or restore the thing named.
    Corrupt,
    /// The component has ended and will not come back: open it anew.
    Closed,
    /// The request is right but this version cannot do it: do without.
    Unsupported,
    /// A defect of this program: report it.
    Internal,
}

impl ErrorKind {
    /// The kind's name in lower case, as it appears in API answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Closed => "closed",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }

    /// The kind with this name, the inverse of [`ErrorKind::as_str`].
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Invalid,
            Self::NotFound,
            Self::Conflict,
            Self::Denied,
            Self::Unavailable,
            Self::Corrupt,
            Self::Closed,
            Self::Unsupported,
            Self::Internal,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == name)
    }
}

/// Why a request was refused, where its protocol tells more cases apart than [`ErrorKind`] does. The kind is
/// what most callers act on; a listener maps the reason to its protocol's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The batch's bytes contradict its format or its CRC. Kafka's `CORRUPT_MESSAGE`.
    CorruptBatch,
    /// A record, or what the batch says about them, is not what producers may write. `INVALID_RECORD`.
    InvalidRecord,
    /// The batch is larger than its topic takes. `MESSAGE_TOO_LARGE`.
    BatchTooLarge,
    /// The compression is not one of Kafka's. `UNSUPPORTED_COMPRESSION_TYPE`.
    UnsupportedCompression,
    /// The batch claims a kind of time that it may not have. `INVALID_TIMESTAMP`.
    InvalidTimestamp,
    /// The batch was written before, so long ago that its offset is no longer known. `DUPLICATE_SEQUENCE_NUMBER`, which
    /// clients take for success.
    DuplicateSequence,
    /// Batches before this one are missing. `OUT_OF_ORDER_SEQUENCE_NUMBER`.
    OutOfOrderSequence,
    /// The batch is of an epoch that a newer one of the same producer id has ended. `INVALID_PRODUCER_EPOCH`.
    InvalidProducerEpoch,
    /// Another producer was opened under the same transactional id. `PRODUCER_FENCED`.
    ProducerFenced,
    /// The producer id is not the one that the transactional id has. `INVALID_PRODUCER_ID_MAPPING`.
    InvalidProducerId,
    /// The transaction is not in a state that allows this, or does not hold this partition. `INVALID_TXN_STATE`.
    InvalidTransactionState,
    /// The time-out is longer than the log grants, or none at all. `INVALID_TRANSACTION_TIMEOUT`.
    InvalidTransactionTimeout,
    /// There is no room on the disk.
    DiskFull,
}

impl Reason {
    /// A stable name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CorruptBatch => "corrupt_batch",
            Self::InvalidRecord => "invalid_record",
            Self::BatchTooLarge => "batch_too_large",
            Self::UnsupportedCompression => "unsupported_compression",
            Self::InvalidTimestamp => "invalid_timestamp",
            Self::DuplicateSequence => "duplicate_sequence",
            Self::OutOfOrderSequence => "out_of_order_sequence",
            Self::InvalidProducerEpoch => "invalid_producer_epoch",
            Self::ProducerFenced => "producer_fenced",
            Self::InvalidProducerId => "invalid_producer_id",
            Self::InvalidTransactionState => "invalid_transaction_state",
            Self::InvalidTransactionTimeout => "invalid_transaction_timeout",
            Self::DiskFull => "disk_full",
        }
    }
}

/// A failed operation: kind, message, context from the inside out, and the cause.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    reason: Option<Reason>,
    message: String,
    context: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),* $(,)?) => {
        $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self { Self::new(ErrorKind::$kind, message) })*
    };
}

impl Error {
    /// An error of `kind`. The message is lower case, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner { kind, reason: None, message: message.into(), context: Vec::new(), source: None }),
        }
    }

    constructors! {
        /// See [`ErrorKind::Invalid`].
        invalid => Invalid,
        /// See [`ErrorKind::NotFound`].
        not_found => NotFound,
        /// See [`ErrorKind::Conflict`].
        conflict => Conflict,
        /// See [`ErrorKind::Unavailable`].
        unavailable => Unavailable,
        /// See [`ErrorKind::Corrupt`].
        corrupt => Corrupt,
        /// See [`ErrorKind::Closed`].
        closed => Closed,
        /// See [`ErrorKind::Unsupported`].
        unsupported => Unsupported,
        /// See [`ErrorKind::Internal`].
        internal => Internal,
    }

    /// Adds what was being done, outermost last: `error.context("read segment 42")`.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.inner.context.push(context.into());
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Tells the case apart for listeners of protocols.
    #[must_use]
    pub fn with_reason(mut self, reason: Reason) -> Self {
        self.inner.reason = Some(reason);
        self
    }

    /// The case that listeners of protocols tell apart, where there is one.
    pub fn reason(&self) -> Option<Reason> {
        self.inner.reason
    }

    /// What the caller must do.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether a write failed because there is no room on the disk.
    pub fn is_disk_full(&self) -> bool {
        self.inner.reason == Some(Reason::DiskFull)
    }

    /// The message without context and cause.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// A copy for a second receiver: kind, reason and full text, without the cause object.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let mut copy = Self::new(self.kind(), self.to_string());
        copy.inner.reason = self.inner.reason;
        copy
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for context in self.inner.context.iter().rev() {
            write!(f, "{context}: ")?;
        }
        f.write_str(&self.inner.message)?;
        if let Some(source) = &self.inner.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.inner.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_ref().map(|source| &**source as _)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        let disk_full = matches!(error.kind(), Io::StorageFull | Io::QuotaExceeded);
        let text = if disk_full { format!("disk full: {error}") } else { error.to_string() };
        let mut error = Self::new(kind, text);
        error.inner.reason = disk_full.then_some(Reason::DiskFull);
        error
    }
}

//! Why a request of a member is refused: finer than an error's kind, because Kafka's protocol has a code for each.

use crate::{Error, ErrorKind};

/// Why the coordinator refuses.
#[derive(Debug)]
pub enum Refusal {
    /// The member is not, or no longer, one of the group: it joins anew.
    UnknownMember,
    /// The member's generation is over: it joins again.
    IllegalGeneration,
    /// The group is dealing anew: the member joins again.
    RebalanceInProgress,
    /// Another member has taken the static name: this one ends.
    FencedInstance,
    /// The member joins again with this id (KIP-394).
    MemberIdRequired(String),
    /// Type or protocols are not those of the group.
    InconsistentProtocol,
    /// The session time is out of its bounds.
    InvalidSessionTime,
    /// The group's name is empty or too long.
    InvalidGroup,
    /// A bound on members, bytes or groups is reached.
    Full(String),
    /// What a member sends beside an offset is too large.
    MetadataTooLarge,
    /// The partition does not exist.
    UnknownPartition,
    /// The group does not exist.
    UnknownGroup,
    /// The group has members.
    NotEmpty,
    /// The group reads the topic now.
    Subscribed,
    /// The group was deleted meanwhile: ask again.
    Dead,
    /// The log refuses, or has stopped.
    Log(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Log(error)
    }
}

impl Refusal {
    /// The error of the group named.
    pub fn of(self, group: &str) -> Error {
        let (kind, what) = match self {
            Self::Log(error) => return error,
            Self::UnknownMember => (ErrorKind::Conflict, "the member was expelled".to_owned()),
            Self::IllegalGeneration => (ErrorKind::Conflict, "the member's generation is over".to_owned()),
            Self::RebalanceInProgress => (ErrorKind::Unavailable, "partitions are dealt anew".to_owned()),
            Self::FencedInstance => (ErrorKind::Conflict, "another member has taken the static name".to_owned()),
            Self::MemberIdRequired(_) => (ErrorKind::Unavailable, "the member must join with its id".to_owned()),
            Self::InconsistentProtocol => {
                (ErrorKind::Conflict, "its members deal partitions in another way".to_owned())
            }
            Self::InvalidSessionTime => (ErrorKind::Invalid, "the session time is out of its bounds".to_owned()),
            Self::InvalidGroup => (ErrorKind::Invalid, "the name is empty or longer than 249 bytes".to_owned()),
            Self::Full(limit) => (ErrorKind::Unavailable, limit),
            Self::MetadataTooLarge => (ErrorKind::Invalid, "metadata beside an offset is too large".to_owned()),
            Self::UnknownPartition => (ErrorKind::NotFound, "a partition does not exist".to_owned()),
            Self::UnknownGroup => (ErrorKind::NotFound, "it does not exist".to_owned()),
            Self::NotEmpty => (ErrorKind::Conflict, "it has members: end them first".to_owned()),
            Self::Subscribed => (ErrorKind::Conflict, "it has members that read the topic".to_owned()),
            Self::Dead => (ErrorKind::Unavailable, "it was deleted meanwhile".to_owned()),
        };
        Error::new(kind, format!("group {group:?}: {what}"))
    }
}

//! What librdkafka and brokers say, as errors of this project.

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

use crate::{Error, ErrorKind};

/// What the caller must do about a code. What nobody has thought of may pass: it is tried again.
pub(super) fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::TopicAlreadyExists
        | Code::UnknownMemberId
        | Code::IllegalGeneration
        | Code::FencedInstanceId
        | Code::InconsistentGroupProtocol => ErrorKind::Conflict,
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicId => {
            ErrorKind::NotFound
        }
        Code::OffsetOutOfRange
        | Code::AutoOffsetReset
        | Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::InvalidArgument
        | Code::InvalidGroupId
        | Code::InvalidSessionTimeout
        | Code::OffsetMetadataTooLarge
        | Code::PolicyViolation => ErrorKind::Invalid,
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::Authentication => ErrorKind::Denied,
        Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::NotImplemented => ErrorKind::Unsupported,
        Code::BadMessage | Code::InvalidMessage | Code::BadCompression => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    }
}

/// An error of a code.
pub(super) fn coded(code: Code, what: impl std::fmt::Display) -> Error {
    Error::new(kind_of(code), format!("{what}: {code}"))
}

/// An error that the cluster at `brokers` gave.
pub(super) fn from_kafka(error: &KafkaError, what: impl std::fmt::Display) -> Error {
    match error {
        KafkaError::Transaction(told) => {
            let kind = kind_of(told.code());
            Error::new(kind, format!("{what}: {}", told.string()))
        }
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => {
            Error::new(ErrorKind::Internal, format!("{what}: {error}"))
        }
        other => match other.rdkafka_error_code() {
            Some(code) => coded(code, what),
            None => Error::new(ErrorKind::Unavailable, format!("{what}: {other}")),
        },
    }
}

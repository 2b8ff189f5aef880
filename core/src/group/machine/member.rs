//! A member as the coordinator knows it, and what it asks and is answered.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use super::Token;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The member's id; empty before its first join.
    pub id: String,
    /// The name of a static member.
    pub instance: Option<String>,
}

/// A member joins.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// Who it is.
    pub who: Identity,
    /// The id to give where it has none.
    pub new_id: String,
    /// Whether an id that is given must first be sent back: a client that never hears its id leaves nothing behind.
    pub confirm_id: bool,
    /// The program's name for itself.
    pub client_id: String,
    /// Where it is.
    pub client_host: String,
    /// What kind of group it expects.
    pub protocol_type: String,
    /// The ways to deal that it supports, best first, each with what the leader should know.
    pub protocols: Vec<(String, Bytes)>,
    /// Without a sign of life for this long it is expelled.
    pub session_time: Duration,
    /// How long it may take to join again.
    pub rebalance_time: Duration,
    /// How long the first round of an empty group waits for more members.
    pub first_delay: Duration,
    /// Whether it understands that a leader has nothing to assign.
    pub can_skip: bool,
}

/// What a member learns by joining.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The generation.
    pub generation: i32,
    /// What kind of group it is.
    pub protocol_type: Option<String>,
    /// How it is dealt.
    pub protocol: Option<String>,
    /// Who deals.
    pub leader: String,
    /// The member's own id.
    pub id: String,
    /// For the leader: all members.
    pub members: Vec<JoinedMember>,
    /// The leader keeps what is assigned.
    pub skip_assignment: bool,
}

/// A member as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedMember {
    /// Its id.
    pub id: String,
    /// Its static name.
    pub instance: Option<String>,
    /// What it says for the protocol that was chosen.
    pub metadata: Bytes,
}

/// A member asks for its assignment; the leader brings all of them.
#[derive(Debug, Clone, Default)]
pub struct SyncRequest {
    /// Who it is.
    pub who: Identity,
    /// Its generation.
    pub generation: i32,
    /// What it takes the group for, if it says so.
    pub protocol_type: Option<String>,
    /// How it thinks that it is dealt, if it says so.
    pub protocol: Option<String>,
    /// The leader's: by the members' ids.
    pub assignments: BTreeMap<String, Bytes>,
}

/// A member's assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synced {
    /// What kind of group it is.
    pub protocol_type: Option<String>,
    /// How it was dealt.
    pub protocol: Option<String>,
    /// As the leader wrote it.
    pub assignment: Bytes,
}

/// A member, for those who look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its id.
    pub id: String,
    /// Its static name.
    pub instance: Option<String>,
    /// The program's name for itself.
    pub client_id: String,
    /// Where it is.
    pub client_host: String,
    /// What it says for the group's protocol.
    pub metadata: Bytes,
    /// What it was assigned.
    pub assignment: Bytes,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) protocols: Vec<(String, Bytes)>,
    pub(super) session_time: Duration,
    pub(super) rebalance_time: Duration,
    pub(super) assignment: Bytes,
    /// When it is expelled; waiting requests are signs of life, but a new member's join is none for ever.
    pub(super) deadline: Duration,
    pub(super) is_new: bool,
    /// Its turn among those who joined.
    pub(super) turn: u64,
    pub(super) joining: Option<Token>,
    pub(super) syncing: Option<Token>,
    pub(super) has_synced: bool,
}

impl Member {
    pub(super) fn supports(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|(name, _)| name == protocol)
    }

    pub(super) fn metadata(&self, protocol: Option<&str>) -> Bytes {
        let of = |wanted| self.protocols.iter().find(|(name, _)| name == wanted);
        protocol.and_then(of).map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }

    /// Bytes that it keeps here by its own wish.
    pub(super) fn asked_bytes(&self) -> usize {
        let names = self.client_id.len() + self.client_host.len() + self.instance.as_ref().map_or(0, String::len);
        names + protocol_bytes(&self.protocols)
    }

    /// When it is expelled, if it is not waiting.
    pub(super) fn expires(&self) -> Option<Duration> {
        let waits = (self.joining.is_some() && !self.is_new) || self.syncing.is_some();
        (!waits).then_some(self.deadline)
    }

    pub(super) fn info(&self, id: &str, protocol: Option<&str>) -> MemberInfo {
        MemberInfo {
            id: id.to_owned(),
            instance: self.instance.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            metadata: self.metadata(protocol),
            assignment: self.assignment.clone(),
        }
    }
}

pub(super) fn protocol_bytes(protocols: &[(String, Bytes)]) -> usize {
    protocols.iter().map(|(name, metadata)| name.len() + metadata.len()).sum()
}

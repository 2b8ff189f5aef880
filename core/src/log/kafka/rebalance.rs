//! What a member of a group has been told, and what it will be: the changes between librdkafka, which deals when it wants,
//! and the member, which asks when it wants.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{ErrorKind, log::Change, topic::TopicPartition};

type Partitions = BTreeSet<TopicPartition>;

/// A revocation that librdkafka waits for.
struct Revocation {
    since: Instant,
    /// The member has let go, or never had anything of it.
    answered: bool,
}

#[derive(Default)]
struct State {
    /// Changes that are not told yet, in order.
    queue: VecDeque<Change>,
    /// What is the member's own, by what it was told.
    own: Partitions,
    /// What it was told last that it loses, until it answers.
    losing: Option<Partitions>,
    revocation: Option<Revocation>,
    /// It took too long, and is out of the group until it knows.
    expelled: bool,
    /// It knows.
    returns: bool,
    closing: bool,
    ended: Option<(ErrorKind, String)>,
}

/// What the member's thread has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Say that a revocation is done.
    LetGo,
    /// Leave the group, and say the same.
    Expel,
    /// Join the group again.
    Return,
}

/// Shared by the member, its thread, and what librdkafka calls in that.
#[derive(Default)]
pub(super) struct Told {
    state: Mutex<State>,
    /// Told when there is something to tell.
    pub(super) come: Notify,
}

impl State {
    fn is_lost(&self) -> bool {
        self.expelled || self.queue.iter().any(|change| matches!(change, Change::Lost(_)))
    }

    /// Everything is gone: what was not told need not be.
    fn lose(&mut self) {
        self.queue.clear();
        self.losing = None;
        if !self.own.is_empty() {
            self.queue.push_back(Change::Lost(self.own.clone()));
        }
    }
}

impl Told {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// librdkafka has assigned these, beside what there is.
    pub(super) fn assigned(&self, new: Partitions) {
        let mut state = self.state();
        if state.closing || state.expelled {
            return;
        }
        // That nothing changes is news to those only who have nothing.
        if !new.is_empty() || (state.own.is_empty() && state.queue.is_empty()) {
            state.queue.push_back(Change::Assigned(new));
            drop(state);
            self.come.notify_one();
        }
    }

    /// librdkafka has revoked these. False where that is to be answered at once.
    pub(super) fn revoked(&self, taken: Partitions, lost: bool) -> bool {
        let mut state = self.state();
        if state.closing || state.expelled {
            return false;
        }
        let mut answered = lost;
        if lost {
            state.lose();
        } else {
            for change in &mut state.queue {
                if let Change::Assigned(new) = change {
                    new.retain(|of| !taken.contains(of));
                }
            }
            let known: Partitions = match state.is_lost() {
                true => Partitions::new(),
                false => state.own.intersection(&taken).cloned().collect(),
            };
            state.queue.retain(|change| !matches!(change, Change::Assigned(new) if new.is_empty()));
            answered = known.is_empty();
            if !answered {
                state.queue.push_back(Change::Revoked(known));
            }
        }
        state.revocation = Some(Revocation { since: Instant::now(), answered });
        drop(state);
        self.come.notify_one();
        true
    }

    /// The member asks for what comes next: what it was told that it loses is no longer its own. Whether the thread has to
    /// hear of it.
    pub(super) fn answer(&self) -> bool {
        let mut state = self.state();
        let Some(lost) = state.losing.take() else { return false };
        state.own.retain(|of| !lost.contains(of));
        if let Some(revocation) = &mut state.revocation {
            revocation.answered = true;
        }
        true
    }

    /// The next change, which counts as told; or why there is none any more.
    pub(super) fn next(&self) -> Result<Option<Change>, (ErrorKind, String)> {
        let mut state = self.state();
        let Some(change) = state.queue.pop_front() else {
            return state.ended.clone().map_or(Ok(None), Err);
        };
        match &change {
            Change::Assigned(new) => state.own.extend(new.iter().cloned()),
            Change::Revoked(taken) => state.losing = Some(taken.clone()),
            Change::Lost(_) => {
                state.own.clear();
                state.returns |= std::mem::take(&mut state.expelled);
            }
        }
        Ok(Some(change))
    }

    /// What is to be done. A commit that is under way is waited for before others can have its partitions.
    pub(super) fn due(&self, lost: bool, patience: Duration, commits: bool) -> Due {
        let mut state = self.state();
        if std::mem::take(&mut state.returns) && state.ended.is_none() {
            return Due::Return;
        }
        let Some(revocation) = &state.revocation else { return Due::Nothing };
        let (answered, late) = (revocation.answered, revocation.since.elapsed() >= patience);
        if lost && !answered {
            // The group did not wait.
            state.lose();
            state.revocation = Some(Revocation { since: Instant::now(), answered: true });
            drop(state);
            self.come.notify_one();
            return Due::Nothing;
        }
        if answered && (!commits || late) {
            state.revocation = None;
            return Due::LetGo;
        }
        if !answered && late {
            state.revocation = None;
            state.lose();
            state.expelled = true;
            drop(state);
            self.come.notify_one();
            return Due::Expel;
        }
        Due::Nothing
    }

    /// Whether all these are the member's own, as far as it and the group know.
    pub(super) fn owns<'a>(&self, of: impl IntoIterator<Item = &'a TopicPartition>) -> bool {
        let state = self.state();
        state.ended.is_none() && !state.is_lost() && of.into_iter().all(|of| state.own.contains(of))
    }

    /// The member has ended, and says why from now on.
    pub(super) fn end(&self, kind: ErrorKind, why: String) {
        let mut state = self.state();
        state.ended.get_or_insert((kind, why));
        drop(state);
        self.come.notify_one();
    }

    /// The member leaves: what is revoked from now on is answered at once. Whether a revocation waits for its answer.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state();
        state.closing = true;
        state.revocation.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3600);

    fn set<const N: usize>(partitions: [u32; N]) -> Partitions {
        partitions.into_iter().map(|partition| TopicPartition::new("a", partition)).collect()
    }

    fn having(own: Partitions) -> Told {
        let told = Told::default();
        told.assigned(own.clone());
        assert_eq!(told.next().unwrap(), Some(Change::Assigned(own)));
        told
    }

    #[test]
    fn a_revocation_is_answered_when_the_member_asks_again() {
        let told = having(set([0, 1]));
        assert!(told.revoked(set([1]), false));
        assert_eq!(told.due(false, PATIENCE, false), Due::Nothing, "it does not know yet");
        assert_eq!(told.next().unwrap(), Some(Change::Revoked(set([1]))));
        assert_eq!(told.due(false, PATIENCE, false), Due::Nothing, "it may still work");
        assert!(told.owns(&set([0, 1])));
        assert!(told.answer());
        assert!(!told.owns(&set([1])));
        assert_eq!(told.due(false, PATIENCE, true), Due::Nothing, "its last commit is under way");
        assert_eq!(told.due(false, PATIENCE, false), Due::LetGo);
        assert_eq!(told.due(false, PATIENCE, false), Due::Nothing);
        assert!(!told.answer());
    }

    #[test]
    fn what_was_never_told_is_let_go_at_once() {
        let told = having(set([0]));
        told.assigned(set([1, 2]));
        assert!(told.revoked(set([1]), false));
        assert_eq!(told.due(false, PATIENCE, false), Due::LetGo);
        assert_eq!(told.next().unwrap(), Some(Change::Assigned(set([2]))));
        assert_eq!(told.next().unwrap(), None);
    }

    #[test]
    fn nothing_is_committed_between_a_loss_and_its_news() {
        let told = having(set([0]));
        told.assigned(set([1]));
        assert!(told.revoked(set([0, 1]), true));
        // It is back before it knows, and has the same again.
        told.assigned(set([0]));
        assert!(!told.owns(&set([0])), "another may have had it");
        assert_eq!(told.due(false, PATIENCE, false), Due::LetGo);
        assert_eq!(told.next().unwrap(), Some(Change::Lost(set([0]))));
        assert!(!told.owns(&set([0])));
        assert_eq!(told.next().unwrap(), Some(Change::Assigned(set([0]))));
        assert!(told.owns(&set([0])));
    }

    #[test]
    fn who_takes_too_long_is_out_until_it_knows() {
        let told = having(set([0]));
        assert!(told.revoked(set([0]), false));
        assert_eq!(told.due(false, Duration::ZERO, false), Due::Expel);
        assert!(!told.owns(&set([0])));
        assert!(!told.revoked(set([0]), false), "what comes of leaving is answered at once");
        told.assigned(set([0]));
        assert_eq!(told.due(false, Duration::ZERO, false), Due::Nothing);
        assert_eq!(told.next().unwrap(), Some(Change::Lost(set([0]))));
        assert_eq!(told.due(false, Duration::ZERO, false), Due::Return);
        assert_eq!(told.due(false, Duration::ZERO, false), Due::Nothing);
    }

    #[test]
    fn a_group_that_does_not_wait_takes_everything() {
        let told = having(set([0, 1]));
        assert!(told.revoked(set([1]), false));
        assert_eq!(told.next().unwrap(), Some(Change::Revoked(set([1]))));
        assert_eq!(told.due(true, PATIENCE, false), Due::Nothing);
        assert!(!told.owns(&set([0])));
        assert_eq!(told.due(true, PATIENCE, false), Due::LetGo);
        assert!(!told.answer(), "there is nothing to answer any more");
        assert_eq!(told.next().unwrap(), Some(Change::Lost(set([0, 1]))));
    }

    #[test]
    fn the_end_comes_after_what_was_before_it() {
        let told = having(set([0]));
        told.assigned(set([1]));
        told.end(ErrorKind::Conflict, "fenced".into());
        assert!(!told.owns(&set([0])));
        assert_eq!(told.next().unwrap(), Some(Change::Assigned(set([1]))));
        for _ in 0..2 {
            assert_eq!(told.next(), Err((ErrorKind::Conflict, "fenced".into())));
        }
    }
}

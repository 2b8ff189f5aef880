//! What people ask of a sync that runs, and what they are told of it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tidemill_core::record::Timestamp;
use tokio::sync::{Notify, oneshot};

use super::{
    parked::ParkedKey,
    status::{State, Status},
};
use crate::{Error, Result};

/// What is asked about parked keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Apply the newest change of each parked key; those that the target takes are parked no more.
    Retry,
    /// Forget the failed changes of a key: its later ones are applied again. The key is written as its records carry it.
    Skip(String),
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Keys that are parked no more.
    pub released: Vec<ParkedKey>,
    /// Keys that are still parked, with their last cause.
    pub parked: Vec<ParkedKey>,
}

type Asked = (Ask, oneshot::Sender<Result<Answer>>);

/// The line into a running sync.
#[derive(Debug, Default)]
pub struct Control {
    asked: Mutex<Vec<Asked>>,
    open: AtomicBool,
    /// Told when the sync runs well.
    pub(super) well: Notify,
    pub(super) fed: Notify,
    pub(super) status: Mutex<Status>,
}

impl Control {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// `Closed` where the sync stops meanwhile; else what came of it.
    pub async fn ask(&self, ask: Ask) -> Result<Answer> {
        let (answer, answered) = oneshot::channel();
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.open.load(Ordering::Acquire) {
                return Err(Error::closed("the sync is not at work; why: tidemill sync status"));
            }
            asked.push((ask, answer));
        }
        self.fed.notify_one();
        answered.await.map_err(|_| Error::closed("the sync stopped"))?
    }

    /// How the sync is now.
    pub fn status(&self, now: Timestamp) -> Status {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let behind = status.behind_since_ms.map(|since| (now.0 - since).max(0)).or(status.in_step.then_some(0));
        let ended = matches!(status.state, State::Stopped | State::Starting | State::Failed);
        status.lag_seconds = behind.filter(|_| !ended).map(|behind| behind as f64 / 1_000.0);
        status
    }

    /// Its run ended since a side is not there, and it will be started again.
    pub fn will_start_again(&self) {
        self.tell(|status| status.state = State::Waiting);
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A run begins, and answers from now on.
    pub(super) fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    /// It has ended: who waits for an answer gets none.
    pub(super) fn close(&self) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        self.open.store(false, Ordering::Release);
        asked.clear();
    }

    pub(super) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

//! Work that one process at a time does: it runs where its only slot is leased, and the other processes stand by.
//!
//! Workers put the same work under a [`Turn`] of the same name; connectors and jobs share this, so that both stop in the
//! same order: what is taken away is stopped before the group hears that it was let go, what was lost is dropped at once.
//! A process that has lost its turn and does not know it yet is held off by the fence of its writers, not by this.

use std::{collections::BTreeSet, pin::pin, time::Duration};

use super::{Change, Lease, Session};
use crate::{ErrorKind, Result};

/// How long one look at the lease waits.
const LOOK: Duration = Duration::from_secs(5);
/// The pause after a look that found the group out of reach.
const PAUSE: Duration = Duration::from_millis(200);
/// How long work may take to stop in order, in which others wait for it: less than the group's patience.
const STOP_TIME: Duration = Duration::from_secs(50);
/// The only slot.
const SLOT: u32 = 0;

/// A place in the line for a piece of work.
pub struct Turn {
    lease: Lease,
    is_mine: bool,
    /// How long work may take to stop.
    patience: Duration,
}

/// How work came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Held<T> {
    /// By itself.
    Ended(T),
    /// Another process gets the turn. The work was told to stop and did; `None` where it took too long and was dropped.
    LetGo(Option<T>),
    /// This process was taken for dead, and another may have the turn. The work was dropped where it was.
    Lost,
}

impl Turn {
    /// Gets into the line for the work of this name.
    ///
    /// # Errors
    /// As [`Session::lease`].
    pub async fn of(session: &dyn Session, name: &str) -> Result<Self> {
        Ok(Self { lease: session.lease(name, 1).await?, is_mine: false, patience: STOP_TIME })
    }

    /// Waits until it is known whose turn it is, and tells whether it is this process's. Once another's was told, waits for
    /// the next news.
    ///
    /// # Errors
    /// As [`Lease::changed`], but for `Unavailable`: the group is asked again.
    ///
    /// # Cancel safety
    /// A dropped future loses nothing.
    pub async fn is_mine(&mut self) -> Result<bool> {
        loop {
            if self.is_mine {
                return Ok(true);
            }
            if matches!(self.news().await?, Some(Change::Assigned(_))) {
                return Ok(self.is_mine);
            }
        }
    }

    /// Does the work while it is this process's turn. `stop` asks the work to end in order; that others wait for its end is
    /// the work's reason to be quick.
    ///
    /// # Errors
    /// As [`Turn::is_mine`]; the work was stopped in order.
    pub async fn hold<T>(&mut self, work: impl Future<Output = T>, stop: impl FnOnce()) -> Result<Held<T>> {
        let mut work = pin!(work);
        let failed = loop {
            let news = tokio::select! {
                biased;
                ended = &mut work => return Ok(Held::Ended(ended)),
                news = self.news() => news,
            };
            match news {
                Ok(Some(Change::Lost(_))) => return Ok(Held::Lost),
                Ok(_) if self.is_mine => {}
                Ok(_) => break None,
                Err(error) => break Some(error),
            }
        };
        stop();
        let ended = tokio::time::timeout(self.patience, work).await.ok();
        failed.map_or(Ok(Held::LetGo(ended)), Err)
    }

    /// Whether it turns out within this time that the turn is another's. Work that was fenced may hear of that first.
    ///
    /// # Errors
    /// As [`Turn::is_mine`].
    pub async fn is_over_within(&mut self, time: Duration) -> Result<bool> {
        let over = async {
            while self.is_mine {
                self.news().await?;
            }
            Ok(true)
        };
        tokio::time::timeout(time, over).await.unwrap_or(Ok(false))
    }

    /// Leaves the line; when this returns the turn is free.
    ///
    /// # Errors
    /// `Unavailable`; then it is free after the session time.
    pub async fn release(self) -> Result<()> {
        self.lease.release().await
    }

    /// The next change, or none for a while. Asking says that what was taken before is let go.
    async fn news(&mut self) -> Result<Option<Change<u32>>> {
        let has = |slots: &BTreeSet<u32>| slots.contains(&SLOT);
        let change = match self.lease.changed(LOOK).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::debug!(%error, "a lease cannot be looked at");
                tokio::time::sleep(PAUSE).await;
                None
            }
            other => other?,
        };
        match &change {
            Some(Change::Assigned(new)) => self.is_mine |= has(new),
            Some(Change::Revoked(taken)) => self.is_mine &= !has(taken),
            Some(Change::Lost(_)) => self.is_mine = false,
            None => {}
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, VecDeque},
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, Ordering},
        },
    };

    use async_trait::async_trait;
    use tokio::sync::oneshot;

    use super::*;
    use crate::{
        Error,
        log::{GroupOffset, Member},
        topic::TopicPartition,
    };

    /// Tells what it is given to tell, and notes each question.
    struct Told {
        changes: VecDeque<Result<Change>>,
        own: BTreeSet<TopicPartition>,
        asked: Arc<Mutex<Vec<&'static str>>>,
    }

    #[async_trait]
    impl Member for Told {
        fn partitions(&self) -> &BTreeSet<TopicPartition> {
            &self.own
        }

        async fn changed(&mut self, _: Duration) -> Result<Option<Change>> {
            self.asked.lock().unwrap().push("asked");
            match self.changes.pop_front() {
                Some(change) => change.map(Some),
                None => std::future::pending().await,
            }
        }

        async fn commit(&mut self, _: BTreeMap<TopicPartition, GroupOffset>) -> Result<()> {
            unreachable!("a lease commits nothing")
        }

        async fn leave(self: Box<Self>) -> Result<()> {
            self.asked.lock().unwrap().push("left");
            Ok(())
        }
    }

    const SOON: Duration = Duration::from_millis(20);

    fn slot() -> BTreeSet<TopicPartition> {
        BTreeSet::from([TopicPartition::new("slots", SLOT)])
    }

    type Asked = Arc<Mutex<Vec<&'static str>>>;

    fn turn(changes: impl IntoIterator<Item = Result<Change>>) -> (Turn, Asked) {
        let asked = Asked::default();
        let (changes, own) = (changes.into_iter().collect(), BTreeSet::new());
        let member = Told { changes, own, asked: Arc::clone(&asked) };
        (Turn { lease: Lease::over(Box::new(member)), is_mine: false, patience: STOP_TIME }, asked)
    }

    #[tokio::test]
    async fn anothers_turn_is_told_and_then_ones_own() {
        let away = Err(Error::unavailable("away"));
        let (mut turn, _) = turn([away, Ok(Change::Assigned(BTreeSet::new())), Ok(Change::Assigned(slot()))]);
        assert!(!turn.is_mine().await.unwrap());
        assert!(turn.is_mine().await.unwrap());
        assert!(turn.is_mine().await.unwrap());
        assert_eq!(turn.hold(async { 7 }, || panic!("nobody stops it")).await.unwrap(), Held::Ended(7));
    }

    /// The next question is the answer to a revocation: it comes only when the work has ended.
    #[tokio::test]
    async fn what_is_taken_away_is_stopped_before_it_is_let_go() {
        let (mut turn, asked) = turn([Ok(Change::Assigned(slot())), Ok(Change::Revoked(slot()))]);
        assert!(turn.is_mine().await.unwrap());
        let (stop, stopped) = oneshot::channel();
        let notes = Arc::clone(&asked);
        let work = async move {
            stopped.await.unwrap();
            tokio::task::yield_now().await;
            notes.lock().unwrap().push("ended");
            5
        };
        assert_eq!(turn.hold(work, || stop.send(()).unwrap()).await.unwrap(), Held::LetGo(Some(5)));
        assert!(tokio::time::timeout(SOON, turn.is_mine()).await.is_err(), "it waits for its turn");
        assert_eq!(*asked.lock().unwrap(), ["asked", "asked", "ended", "asked"]);
        turn.release().await.unwrap();
        assert_eq!(asked.lock().unwrap().last(), Some(&"left"));
    }

    #[tokio::test]
    async fn what_is_lost_is_dropped_at_once_and_what_does_not_stop_in_time() {
        let lost = || Ok(Change::Lost(slot()));
        let (mut turn, _) = turn([
            Ok(Change::Assigned(slot())),
            lost(),
            Ok(Change::Assigned(slot())),
            Ok(Change::Revoked(slot())),
            Ok(Change::Assigned(slot())),
            lost(),
        ]);
        let stops = AtomicBool::new(false);
        assert!(turn.is_mine().await.unwrap());
        let held = turn.hold(std::future::pending::<()>(), || stops.store(true, Ordering::Relaxed)).await;
        assert_eq!(held.unwrap(), Held::Lost);
        assert!(!stops.load(Ordering::Relaxed), "there is no time for order");
        assert!(turn.is_mine().await.unwrap());
        turn.patience = SOON;
        let held = turn.hold(std::future::pending::<()>(), || stops.store(true, Ordering::Relaxed)).await;
        assert_eq!(held.unwrap(), Held::LetGo(None));
        assert!(stops.load(Ordering::Relaxed));
        assert!(turn.is_mine().await.unwrap());
        assert!(turn.is_over_within(Duration::from_secs(1)).await.unwrap());
        assert!(turn.is_over_within(Duration::from_secs(1)).await.unwrap(), "it stays so");
    }

    #[tokio::test]
    async fn a_turn_that_lasts_is_not_over_and_a_member_that_ended_stops_the_work() {
        let (mut turn, _) = turn([Ok(Change::Assigned(slot()))]);
        assert!(turn.is_mine().await.unwrap());
        assert!(!turn.is_over_within(SOON).await.unwrap());
        let (mut turn, _) = self::turn([Ok(Change::Assigned(slot())), Err(Error::conflict("ended"))]);
        assert!(turn.is_mine().await.unwrap());
        let (stop, stopped) = oneshot::channel();
        let failed = turn.hold(stopped, || stop.send(()).unwrap()).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Conflict);
    }
}

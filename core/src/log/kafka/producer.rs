//! A producer of librdkafka and the thread that it lives in. Whatever blocks in it, and all that it answers, happens
//! there; others give work and wait.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{DeliveryResult, Header, Message, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
    types::RDKafkaErrorCode as Code,
};
use tokio::sync::oneshot;

use super::{
    cluster::{Context, REQUEST_TIME},
    error::{coded, from_kafka, kind_of},
};
use crate::{Error, Result, record::Record, topic::TopicPartition};

/// How long the thread looks for answers at a time while some are to come.
const TURN: Duration = Duration::from_millis(1);
/// Nothing is to come: errors of the connection are taken that often.
const IDLE: Duration = Duration::from_millis(500);

/// Records that were sent together, and what became of them.
pub(super) struct Delivery {
    state: Mutex<State>,
}

struct State {
    /// Not yet answered.
    left: usize,
    first: i64,
    last: i64,
    failed: Option<Code>,
    told: Option<oneshot::Sender<Result<(i64, i64)>>>,
}

impl Delivery {
    fn answered(&self, outcome: Result<i64, Code>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = state.left.saturating_sub(1);
        match outcome {
            Ok(offset) => {
                state.first = state.first.min(offset);
                state.last = state.last.max(offset);
            }
            Err(code) if state.failed.is_none_or(given_up) => state.failed = Some(code),
            Err(_) => {}
        }
        if state.left == 0
            && let Some(told) = state.told.take()
        {
            let outcome = match state.failed {
                Some(code) => Err(coded(code, "Kafka did not take it")),
                None => Ok((state.first, state.last)),
            };
            let _ = told.send(outcome);
        }
    }
}

/// What will become of records that were sent.
pub(super) struct Sent(oneshot::Receiver<Result<(i64, i64)>>);

impl Sent {
    /// The first and the last offset, once all are durable.
    pub(super) async fn done(self) -> Result<(i64, i64)> {
        self.0.await.unwrap_or_else(|_| Err(Error::unavailable("the producer has ended")))
    }

    /// The same, where all is known to be answered.
    pub(super) fn now(mut self) -> Result<(i64, i64)> {
        self.0.try_recv().unwrap_or_else(|_| Err(Error::unavailable("Kafka has not answered")))
    }
}

/// What a producer has told, beside answers.
#[derive(Default)]
pub(super) struct Deliveries {
    transactional: bool,
    /// Why the first record of this transaction was not taken; what was given up after it tells nothing.
    failed: Mutex<Option<Code>>,
    /// Where records were not taken.
    gaps: Mutex<BTreeSet<(String, i32)>>,
    /// It will never write again.
    dead: AtomicBool,
}

impl Deliveries {
    /// Why the first record was not taken.
    pub(super) fn failed(&self) -> Option<Code> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_taken(&self, code: Code, topic: &str, partition: i32) {
        // Of one that never ends a transaction nobody asks.
        if given_up(code) || !self.transactional {
            return;
        }
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(code);
        let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        gaps.insert((topic.to_owned(), partition));
    }

    /// Forgets what failed, and tells where: a new transaction begins.
    pub(super) fn forget(&self) -> BTreeSet<(String, i32)> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        std::mem::take(&mut *self.gaps.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        Context.log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(Code::Fatal) {
            self.dead.store(true, Ordering::Release);
        }
        Context.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Arc<Delivery>) {
        let outcome = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                self.not_taken(code, message.topic(), message.partition());
                Err(code)
            }
        };
        delivery.answered(outcome);
    }
}

/// Whether a record was not tried any more, for what had failed before it.
fn given_up(code: Code) -> bool {
    matches!(code, Code::PurgeQueue | Code::PurgeInflight | Code::Fatal | Code::State)
}

pub(super) type Client = BaseProducer<Deliveries>;
type Work = Box<dyn FnOnce(&Client) + Send>;

/// The handle of a producer. Dropping it lets the thread end, after the work it was given.
pub(super) struct Producer {
    work: Sender<Work>,
    told: Arc<Deliveries>,
}

impl Producer {
    /// Starts a producer of this configuration.
    pub(super) fn start(mut config: ClientConfig) -> Result<Self> {
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("batch.size", "1000000")
            .set("queue.buffering.max.kbytes", "98304")
            .set("queue.buffering.max.messages", "1000000")
            .set("delivery.timeout.ms", REQUEST_TIME.as_millis().to_string());
        let transactional = config.get("transactional.id").is_some();
        if transactional {
            let time = crate::log::TRANSACTION_TIME.as_millis().to_string();
            config.set("transaction.timeout.ms", time).remove("delivery.timeout.ms");
        }
        let told = Deliveries { transactional, ..Deliveries::default() };
        let client: Client = config.create_with_context(told).map_err(|e| from_kafka(&e, "open a producer"))?;
        let (work, inbox) = channel();
        let told = Arc::clone(client.context());
        let thread = std::thread::Builder::new().name("tm-kafka-producer".into()).spawn(move || serve(&client, &inbox));
        thread.map_err(|e| Error::unavailable("start a thread").with_source(e))?;
        Ok(Self { work, told })
    }

    /// Whether it will never write again: librdkafka cannot tell any more what the cluster has of it.
    pub(super) fn is_dead(&self) -> bool {
        self.told.dead.load(Ordering::Acquire)
    }

    /// Runs work in the thread. It is done even if nobody waits any more.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Client) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (told, answer) = oneshot::channel();
        self.give(move |client| drop(told.send(work(client))))?;
        answer.await.unwrap_or_else(|_| Err(Error::unavailable("the producer has ended")))
    }

    /// Runs work in the thread; nobody waits for it.
    pub(super) fn give(&self, work: impl FnOnce(&Client) + Send + 'static) -> Result<()> {
        self.work.send(Box::new(work)).map_err(|_| Error::unavailable("the producer has ended"))
    }

    /// Hands records to librdkafka, in order: all of them, or none where one is not as it must be.
    pub(super) async fn send(&self, to: &TopicPartition, records: Vec<Record>) -> Result<Sent> {
        let to = to.clone();
        self.call(move |client| {
            let (messages, sent) = prepare(&to, &records)?;
            let failed = |error| fatal(client, &to).unwrap_or_else(|| from_kafka(&error, format!("write to {to}")));
            send(client, messages).map_err(failed)?;
            Ok(sent)
        })
        .await
    }
}

/// The error that ended a producer for good, which is why all after it fails.
pub(super) fn fatal(client: &Client, what: impl std::fmt::Display) -> Option<Error> {
    let (code, told) = client.client().fatal_error()?;
    client.context().dead.store(true, Ordering::Release);
    Some(Error::new(kind_of(code), format!("{what}: {told}")))
}

fn serve(client: &Client, inbox: &Receiver<Work>) {
    loop {
        let next = match client.in_flight_count() {
            0 => inbox.recv_timeout(IDLE),
            _ => {
                client.poll(TURN);
                inbox.try_recv().map_err(|e| match e {
                    std::sync::mpsc::TryRecvError::Empty => RecvTimeoutError::Timeout,
                    std::sync::mpsc::TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            }
        };
        match next {
            Ok(work) => work(client),
            Err(RecvTimeoutError::Timeout) => client.poll(Duration::ZERO),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

type Prepared<'a> = BaseRecord<'a, [u8], [u8], Arc<Delivery>>;

/// Records as librdkafka takes them, and what will become of them. They are made before the first is sent.
pub(super) fn prepare<'a>(to: &'a TopicPartition, records: &'a [Record]) -> Result<(Vec<Prepared<'a>>, Sent)> {
    let (told, answer) = oneshot::channel();
    let state = State { left: records.len(), first: i64::MAX, last: i64::MIN, failed: None, told: Some(told) };
    let delivery = Arc::new(Delivery { state: Mutex::new(state) });
    let messages = records.iter().map(|record| prepared(to, record, &delivery)).collect::<Result<_>>()?;
    Ok((messages, Sent(answer)))
}

/// Puts records into librdkafka's queue; waits while that is full.
pub(super) fn send(client: &Client, messages: Vec<Prepared<'_>>) -> Result<(), KafkaError> {
    let deadline = Instant::now() + REQUEST_TIME;
    for mut message in messages {
        loop {
            match client.send(message) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(Code::QueueFull), back)) if Instant::now() < deadline => {
                    message = back;
                    client.poll(TURN);
                }
                Err((error, _)) => return Err(error),
            }
        }
    }
    Ok(())
}

fn prepared<'a>(to: &'a TopicPartition, record: &'a Record, delivery: &Arc<Delivery>) -> Result<Prepared<'a>> {
    let mut message: Prepared<'a> = BaseRecord::with_opaque_to(&to.topic, Arc::clone(delivery));
    message = message.partition(i32::try_from(to.partition).unwrap_or(i32::MAX));
    if let Some(key) = &record.key {
        message = message.key(key.as_ref());
    }
    if let Some(value) = &record.value {
        message = message.payload(value.as_ref());
    }
    if let Some(at) = record.timestamp {
        // librdkafka takes 0 for "now"; what is below is no time to a cluster.
        if at.0 <= 0 {
            let why = "a Kafka cluster holds times after 1970 only";
            return Err(Error::invalid(format!("a record at {} ms since 1970 cannot be written to {to}: {why}", at.0)));
        }
        message = message.timestamp(at.0);
    }
    if !record.headers.is_empty() {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for header in &record.headers {
            let key = std::str::from_utf8(&header.name);
            let key = key.ok().filter(|key| !key.contains('\0'));
            let key = key.ok_or_else(|| Error::invalid("the name of a header is not text"))?;
            headers = headers.insert(Header { key, value: header.value.as_deref() });
        }
        message = message.headers(headers);
    }
    Ok(message)
}

/// Waits in the thread until all that was sent is answered. librdkafka's own flush, as bound, waits in steps of 100 ms.
pub(super) fn drain(client: &Client, deadline: Instant) -> Result<()> {
    while client.in_flight_count() > 0 {
        if Instant::now() > deadline {
            return Err(Error::unavailable("Kafka does not answer what was sent"));
        }
        client.poll(TURN);
    }
    Ok(())
}

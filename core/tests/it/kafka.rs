//! What the contract cannot say of a log: a broker that is not there, goes, and comes back; what other programs write and
//! make there; a process that dies; and how fast it is.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use tidemill_core::{
    ErrorKind,
    engine::Table,
    log::{Caller, Change, FetchOptions, Kafka, Log, Session, Writer},
    record::Record,
    topic::{TopicPartition, TopicSpec},
};

use crate::servers::Broker;

const LATE: Duration = Duration::from_secs(60);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(LATE, future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

async fn broker() -> Option<Broker> {
    tokio::task::spawn_blocking(Broker::start).await.expect("joined")
}

async fn session(broker: &Broker) -> std::sync::Arc<dyn Session> {
    let log = soon("the broker", Kafka::connect(&broker.url())).await.expect("connects");
    log.session(Caller::internal("test")).await.expect("a session")
}

fn text(value: impl Into<String>) -> Vec<Record> {
    vec![Record::new(None, Some(Bytes::from(value.into())))]
}

/// All values of a partition.
async fn all(session: &dyn Session, of: &TopicPartition) -> Vec<String> {
    let end = session.bounds(std::slice::from_ref(of)).await.expect("bounds")[0].durable_offset;
    let (mut next, mut values) = (0, Vec::new());
    while next < end {
        let options = FetchOptions { end: Some(end), ..FetchOptions::default() };
        let chunk = soon("a read", session.fetch(of, next, &options)).await.expect("a chunk");
        values.extend(
            chunk.records.iter().map(|r| String::from_utf8_lossy(r.value.as_ref().expect("a value")).into_owned()),
        );
        next = chunk.next_offset;
    }
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn no_broker_is_unavailable_and_named() {
    let nobody = Kafka::connect("kafka://127.0.0.1:1").await.err().expect("nobody is there");
    assert_eq!(nobody.kind(), ErrorKind::Unavailable);
    assert!(nobody.to_string().contains("127.0.0.1:1"), "{nobody}");
}

/// A broker is killed between the commits of a writer and in the midst of one, and comes back. What was committed is there
/// once; a commit that failed is there or not, as the position says.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_loses_and_doubles_nothing() {
    killed_brokers(1).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: a broker is killed time and again"]
async fn soak_a_broker_that_is_killed_loses_and_doubles_nothing() {
    killed_brokers(10).await;
}

async fn killed_brokers(rounds: u64) {
    let Some(mut broker) = broker().await else { return };
    let session = session(&broker).await;
    let topic = session.create_topic("a", &TopicSpec::default()).await.expect("made");
    let to = TopicPartition::new(topic.name, 0);
    let mut writer = session.writer("w").await.expect("a writer");
    let mut wanted = Vec::new();
    for round in 0..rounds {
        for i in 0..5 {
            let value = format!("{round}-{i}");
            write(&mut *writer, &to, &value).await.expect("committed");
            wanted.push(value);
        }
        let value = format!("{round}-killed");
        writer.append(&to, text(&value)).await.expect("staged");
        writer.set_position("p", Some(value.clone()));
        let killed = tokio::task::block_in_place(|| {
            broker.kill9();
            std::thread::scope(|scope| {
                // It comes back while the commit is tried.
                let back = scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(300 + 700 * (round % 3)));
                    broker.run();
                });
                let commit = soon("a commit", writer.commit());
                let outcome = tokio::runtime::Handle::current().block_on(commit);
                back.join().expect("the broker is back");
                outcome
            })
        });
        if let Err(error) = &killed {
            let again = writer.commit().await.expect_err("it has ended");
            assert!(matches!(again.kind(), ErrorKind::Closed | ErrorKind::Conflict), "{again}");
            assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Conflict), "{error}");
        }
        writer = soon("a new writer", session.writer("w")).await.expect("a new writer");
        let stands = writer.positions().get("p") == Some(&value);
        assert!(stands || killed.is_err(), "an acknowledged transaction is lost");
        if stands {
            wanted.push(value);
        }
    }
    write(&mut *writer, &to, "last").await.expect("committed");
    wanted.push("last".into());
    let seen = async {
        loop {
            let found = all(&*session, &to).await;
            if found.last() == wanted.last() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(soon("the last one", seen).await, wanted);
}

async fn write(writer: &mut dyn Writer, to: &TopicPartition, value: &str) -> tidemill_core::Result<()> {
    writer.append(to, text(value)).await?;
    writer.set_position("p", Some(value.to_owned()));
    writer.commit().await
}

/// A client of another program.
fn other(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.url().trim_start_matches("kafka://"));
    config
}

/// Makes a topic as an administrator would.
async fn make(broker: &Broker, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = other(broker).create().expect("a client");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    let made = soon("making a topic", admin.create_topics([&topic], &AdminOptions::new())).await.expect("asked");
    made.into_iter().for_each(|made| drop(made.expect("made")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_and_make_is_read_or_refused_by_name() {
    let Some(broker) = broker().await else { return };
    let session = session(&broker).await;
    session.create_topic("a", &TopicSpec::default()).await.expect("made");
    let mut wanted = Vec::new();
    // The other ways need more jars than this broker has; a mock of a cluster tests them.
    for codec in ["none", "gzip"] {
        let values: Vec<_> = (0..20).map(|i| format!("{codec} {i} {}", "x".repeat(200))).collect();
        let producer: BaseProducer =
            other(&broker).set("compression.codec", codec).set("linger.ms", "50").create().expect("a producer");
        for value in &values {
            producer.send(BaseRecord::<(), str>::to("a").partition(0).payload(value)).expect("sent");
        }
        tokio::task::block_in_place(|| producer.flush(LATE)).expect("written");
        wanted.extend(values);
    }
    let read = all(&*session, &TopicPartition::new("a", 0)).await;
    assert_eq!(read, wanted);

    // Where only the newest record of each key stays, one without a key is refused for good.
    let mut keyed = TopicSpec::default();
    keyed.config.set("cleanup.policy", "compact").expect("a setting");
    session.create_topic("keyed", &keyed).await.expect("made");
    let to = TopicPartition::new("keyed", 0);
    let refusal = session.append(&to, text("without")).await.expect_err("it has no key");
    assert_eq!(refusal.kind(), ErrorKind::Invalid, "{refusal}");
    let at_0 = Record { timestamp: Some(tidemill_core::record::Timestamp(0)), ..text("old").remove(0) };
    let refusal = session.append(&TopicPartition::new("a", 0), vec![at_0]).await.expect_err("it would be stamped now");
    assert_eq!(refusal.kind(), ErrorKind::Invalid, "{refusal}");

    // A name with underscores is a user's, as long as the cluster does not say otherwise.
    make(&broker, "__theirs", 1, &[]).await;
    let topics = session.topics().await.expect("listed");
    let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(names, ["__theirs", "a", "keyed"]);

    // The log's own topics, made by somebody who knew no better.
    make(&broker, &Table::Positions.topic(), 3, &[("cleanup.policy", "compact")]).await;
    let refusal = session.writer("w").await.err().expect("positions would be sought elsewhere");
    assert_eq!(refusal.kind(), ErrorKind::Invalid, "{refusal}");
    assert!(refusal.to_string().contains("\"_tidemill.positions\" has 3 partitions"), "{refusal}");
    make(&broker, &Table::Schemas.topic(), 1, &[("cleanup.policy", "delete")]).await;
    let refusal = session.put(Table::Schemas, "k", Some("v".into()), None).await.expect_err("it would be lost");
    assert!(refusal.to_string().contains("cleanup.policy=delete"), "{refusal}");
}

/// Not a test of its own: the process that [`slots_of_a_killed_process_are_taken_over`] kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: the other process of a test, which starts it"]
async fn soak_process_that_holds_slots() {
    let Ok(url) = std::env::var("TIDEMILL_TEST_BROKER") else { return };
    let log = Kafka::connect(&url).await.expect("connects");
    let session = log.session(Caller::internal("killed")).await.expect("a session");
    let mut lease = session.lease("job", 2).await.expect("a lease");
    loop {
        if let Some(Change::Assigned(slots)) = lease.changed(LATE).await.expect("a lease")
            && slots.len() == 2
        {
            println!("holds both");
        }
    }
}

/// After kill -9 the work of a process is in other hands within 15 s: the session time and the dealing.
#[tokio::test(flavor = "multi_thread")]
async fn slots_of_a_killed_process_are_taken_over() {
    let Some(broker) = broker().await else { return };
    let mut process = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["kafka::soak_process_that_holds_slots", "--exact", "--ignored", "--nocapture"])
        .env("TIDEMILL_TEST_BROKER", broker.url())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let said = process.stdout.take().expect("its output");
    let holds = tokio::task::spawn_blocking(move || {
        std::io::BufRead::lines(std::io::BufReader::new(said)).any(|line| line.expect("text").contains("holds both"))
    });
    assert!(soon("the other process", holds).await.expect("joined"), "it ended");
    process.kill().expect("killed");
    process.wait().expect("it is dead");
    let killed = Instant::now();
    let mut lease = session(&broker).await.lease("job", 2).await.expect("a lease");
    let taken = async {
        while lease.held().len() < 2 {
            lease.changed(Duration::from_secs(1)).await.expect("a lease");
        }
    };
    soon("taking over", taken).await;
    let after = killed.elapsed();
    println!("taken over after {after:?}");
    assert!(after < Duration::from_secs(15), "taken over after {after:?}");
}

/// A cluster gives up a transaction that is open for long, and fences its producer: that is told as what it is, and so is
/// a fence of one that was open for as long.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: waits for the time-out of a transaction"]
async fn soak_a_transaction_that_is_open_for_long_is_told_as_such() {
    let Some(broker) = broker().await else { return };
    let session = session(&broker).await;
    session.create_topic("a", &TopicSpec::default()).await.expect("made");
    let to = TopicPartition::new("a", 0);
    let mut writer = session.writer("w").await.expect("a writer");
    writer.append(&to, text("slow")).await.expect("staged");
    let mut fenced = session.writer("v").await.expect("a writer");
    fenced.append(&to, text("fenced")).await.expect("staged");
    // The broker looks every ten seconds.
    tokio::time::sleep(Duration::from_secs(22)).await;
    let newer = session.writer("v").await.expect("a writer");
    let error = fenced.commit().await.expect_err("it is fenced");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    newer.close().await.expect("closed");
    let error = writer.commit().await.expect_err("it is aborted");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("was open for"), "{error}");
    assert_eq!(all(&*session, &to).await, [""; 0]);
    write(&mut *session.writer("w").await.expect("a writer"), &to, "quick").await.expect("committed");
}

/// More partitions than a session reads ahead: each is left and taken up again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: a reader that is moved waits for its last request"]
async fn soak_more_partitions_than_are_read_ahead() {
    let Some(bed) = crate::contract::Bed::kafka().await else { return };
    crate::contract::reads::turns(&bed, 300).await;
}

/// Prints what opening a writer, committing, appending and reading cost here.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "speed: prints figures"]
async fn speed_of_a_broker() {
    let Some(broker) = broker().await else { return };
    let session = session(&broker).await;
    session.create_topic("a", &TopicSpec::default()).await.expect("made");
    let to = TopicPartition::new("a", 0);
    let mut opens = Vec::new();
    for _ in 0..8 {
        let begun = Instant::now();
        drop(session.writer("w").await.expect("a writer"));
        opens.push(begun.elapsed());
    }
    let mut writer = session.writer("w").await.expect("a writer");
    let mut commits = Vec::new();
    for i in 0..300 {
        let begun = Instant::now();
        write(&mut *writer, &to, &i.to_string()).await.expect("committed");
        commits.push(begun.elapsed());
    }
    let record = |size| Record::new(None, Some(Bytes::from(vec![b'x'; size])));
    let (begun, mut bytes) = (Instant::now(), 0);
    for _ in 0..100 {
        session.append(&to, (0..1000).map(|_| record(1000)).collect()).await.expect("appended");
        bytes += 1_000_000;
    }
    let appended = f64::from(bytes) / 1e6 / begun.elapsed().as_secs_f64();
    let (begun, mut bytes) = (Instant::now(), 0);
    for _ in 0..100 {
        writer.append(&to, (0..1000).map(|_| record(1000)).collect()).await.expect("staged");
        writer.commit().await.expect("committed");
        bytes += 1_000_000;
    }
    let committed = f64::from(bytes) / 1e6 / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let read: usize = all(&*session, &to).await.iter().map(String::len).sum();
    let read = read as f64 / 1e6 / begun.elapsed().as_secs_f64();
    let mut single = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        session.append(&to, vec![record(100)]).await.expect("appended");
        single.push(begun.elapsed());
    }
    for list in [&mut opens, &mut commits, &mut single] {
        list.sort_unstable();
    }
    let middle = |list: &[Duration]| list[list.len() / 2];
    println!("one broker of Apache Kafka 4.1.1, one partition, in memory, no fsync; records of 1,000 bytes");
    println!("open a writer: p50 {:?}, slowest {:?}", middle(&opens), opens[opens.len() - 1]);
    println!("a transaction of one record and a position: p50 {:?}, p99 {:?}", middle(&commits), commits[296]);
    println!("an append of one record: p50 {:?}", middle(&single));
    println!(
        "append by 1,000: {appended:.0} MB/s; in transactions of 1,000: {committed:.0} MB/s; read: {read:.0} MB/s"
    );
}

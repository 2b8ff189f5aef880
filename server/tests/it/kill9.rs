//! `kill -9` of a sync at random moments, while it copies and while it follows, with work in flight. Rounds and seed can be
//! chosen: `TIDEMILL_ROUNDS=100 TIDEMILL_SEED=3`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};

use crate::{
    ledger::{History, Sent, line_faults, topic_faults},
    support::{Folder, Running, json_lines, poll, replica_faults},
};

const LEAST_ROUNDS: u64 = 6;
/// The normal run has as many rounds as fit; a count asked for is run to its end.
const TIME: Duration = Duration::from_secs(28);
const IN_STEP: &str = "in step, following";
const TABLES: [(&str, &str); 3] = [("account", "s.account"), ("order line", "s.order_x20line"), ("tag", "s.tag")];

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// A small generator, so that a seed means the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// All that is left when the killing is over.
struct Outcome {
    histories: BTreeMap<String, History>,
    topics: BTreeMap<String, Vec<Json>>,
    source: Json,
    replica: Json,
    sent: Sent,
    lines: Vec<String>,
}

impl Outcome {
    fn faults(&self) -> Vec<String> {
        let mut faults = replica_faults(&self.source, &self.replica);
        for (table, history) in &self.histories {
            let of_topic = topic_faults(history, &self.topics[table]).into_iter();
            faults.extend(of_topic.map(|fault| format!("{table}: {fault}")));
        }
        faults.extend(line_faults(&self.sent, &self.lines));
        faults
    }
}

struct Campaign {
    folder: Folder,
    mode: &'static str,
    random: Random,
    writer: Running,
    producer: Running,
    /// Rounds that died before the copy was whole, and after.
    copying: u64,
    following: u64,
}

impl Campaign {
    fn start(mode: &'static str, seed: u64, rows: u64) -> Self {
        let folder = Folder::new();
        folder.sync_file("s");
        let [source, ledger, lines] = ["source.db", "ledger", "lines"].map(|name| folder.text(name));
        let socket = folder.text("data/api.sock");
        let (seed_text, rows) = (seed.to_string(), rows.to_string());
        let writer = folder.start_python(&["write", &source, &ledger, &seed_text, mode, &rows]);
        poll(Duration::from_secs(60), || std::fs::metadata(&ledger).ok().filter(|m| m.len() > 0)).unwrap();
        let producer = folder.start_python(&["produce", &socket, &lines, &seed_text]);
        Self { folder, mode, random: Random(seed), writer, producer, copying: 0, following: 0 }
    }

    fn sync(&self) -> Running {
        self.folder.start(&["sync", "run", "s.toml", "--data-dir", "data"])
    }

    /// One life of the sync. Once it has been in step, the ledger is exact: nothing may be missing from the topics.
    fn round(&mut self, must_follow: bool) {
        let mut sync = self.sync();
        if must_follow {
            sync.wait_err(IN_STEP);
        }
        // The random moment is the point; nothing waits for it.
        let moment = Duration::from_millis(5 + self.random.below(700));
        std::thread::sleep(moment);
        assert!(sync.is_running(), "the sync ended by itself: {}", sync.err());
        sync.kill();
        assert!(self.writer.is_running() && self.producer.is_running(), "{}{}", self.writer.err(), self.producer.err());
        if sync.err().contains(IN_STEP) && self.following == 0 {
            self.mark();
        }
        match self.following > 0 || sync.err().contains(IN_STEP) {
            true => self.following += 1,
            false => self.copying += 1,
        }
    }

    fn mark(&mut self) {
        self.writer.say("mark\n");
        let marked =
            || std::fs::read_to_string(self.folder.path("ledger")).unwrap().contains("{\"mark\"").then_some(());
        poll(Duration::from_secs(20), marked).expect("the writer goes on");
    }

    /// Lets the last life of the sync come to an end in peace, and reads everything.
    fn finish(mut self) -> Outcome {
        let mut sync = self.sync();
        sync.wait_err(IN_STEP);
        for program in [&mut self.writer, &mut self.producer] {
            program.close_stdin();
        }
        let (writer, producer) = (self.writer.end(), self.producer.end());
        writer.ok();
        producer.ok();
        self.folder.wait_equal();
        sync.stop("TERM");
        let read = |name: &str| std::fs::read_to_string(self.folder.path(name)).unwrap();
        let (histories, changes) = History::load(&read("ledger"));
        let sent = Sent::load(&read("lines"));
        let consume =
            |topic| json_lines(&self.folder.run(&["consume", topic, "--json", "-e", "--data-dir", "data"]).ok());
        let topics: BTreeMap<_, _> =
            TABLES.iter().map(|(table, topic)| ((*table).to_owned(), consume(topic))).collect();
        let lines: Vec<_> = consume("lines").iter().map(|line| line["value"].as_str().unwrap().to_owned()).collect();
        println!(
            "{}: killed {} times while copying, {} while following; {changes} changes committed, {} records in the topics, \
             {} requests acknowledged, {} without an answer, {} lines",
            self.mode,
            self.copying,
            self.following,
            topics.values().map(Vec::len).sum::<usize>(),
            sent.acknowledged.len(),
            sent.unanswered(),
            lines.len(),
        );
        let (source, replica) = (self.folder.dump("source.db"), self.folder.dump("replica.db"));
        Outcome { histories, topics, source, replica, sent, lines }
    }
}

fn campaign(mode: &'static str) -> Outcome {
    let seed = env("TIDEMILL_SEED").unwrap_or(1);
    let rounds = env("TIDEMILL_ROUNDS");
    let (started, most) = (Instant::now(), rounds.unwrap_or(20));
    println!("{mode}: seed {seed}, up to {most} rounds");
    let mut campaign = Campaign::start(mode, seed, 12_000 + 2_000 * most);
    let mut done = 0;
    while done < most && (rounds.is_some() || done < LEAST_ROUNDS || started.elapsed() < TIME) {
        // Half of the rounds at most may die before the copy is whole.
        let must_follow = campaign.following == 0 && (done >= most.div_ceil(2) || started.elapsed() > TIME / 2);
        campaign.round(must_follow);
        done += 1;
    }
    let (copying, following) = (campaign.copying, campaign.following);
    assert!(copying >= 1 && following >= 1, "one side was not tried: {copying} copying, {following} following");
    let outcome = campaign.finish();
    println!("{mode}: {done} rounds in {:.0} s", started.elapsed().as_secs_f64());
    let faults = outcome.faults();
    assert!(faults.is_empty(), "seed {seed}: {} faults: {:#?}", faults.len(), &faults[..faults.len().min(20)]);
    outcome
}

#[test]
fn kill9_loses_and_doubles_nothing_in_a_wal_source() {
    sabotage(campaign("wal"));
}

#[test]
fn kill9_loses_and_doubles_nothing_in_a_rollback_journal_source() {
    sabotage(campaign("delete"));
}

/// The checker's twin: each kind of damage, done to what was read, must be seen. The outcome itself is without fault.
fn sabotage(mut outcome: Outcome) {
    let table = "account";
    let records = outcome.topics[table].clone();
    let (first, second) = two_of_one_key(&records);
    let mut check = |what: &str, damage: &dyn Fn(&mut Outcome)| {
        damage(&mut outcome);
        let faults = outcome.faults();
        assert!(!faults.is_empty(), "not seen: {what}");
        println!("seen: {what}: {}", faults[0]);
        outcome.topics.insert(table.to_owned(), records.clone());
    };
    let topic = |outcome: &mut Outcome, damage: &dyn Fn(&mut Vec<Json>)| damage(outcome.topics.get_mut(table).unwrap());
    check("a lost change", &|o| topic(o, &|records| drop(records.remove(second))));
    check("a lost change that another followed", &|o| topic(o, &|records| drop(records.remove(first))));
    check("a lost last change", &|o| topic(o, &|records| drop(records.pop())));
    check("a doubled change", &|o| {
        topic(o, &|records| {
            let mut again = records[second].clone();
            again["offset"] = (records.last().unwrap()["offset"].as_i64().unwrap() + 1).into();
            records.push(again);
        });
    });
    check("two changes of one key in the wrong order", &|o| {
        topic(o, &|records| {
            let value = records[first]["value"].take();
            records[first]["value"] = records[second]["value"].take();
            records[second]["value"] = value;
        });
    });
    check("an invented change", &|o| {
        topic(o, &|records| {
            let mut event: Json = serde_json::from_str(records[second]["value"].as_str().unwrap()).unwrap();
            event["after"]["stamp"] = json!(1_u64 << 50);
            records[second]["value"] = event.to_string().into();
        });
    });
    check("a change with another before", &|o| {
        topic(o, &|records| {
            let mut event: Json = serde_json::from_str(records[second]["value"].as_str().unwrap()).unwrap();
            event["before"]["stamp"] = json!(1_u64 << 50);
            records[second]["value"] = event.to_string().into();
        });
    });
    check("a lost tombstone", &|o| {
        topic(o, &|records| {
            let at = records.iter().rposition(|record| record["value"].is_null()).unwrap();
            records.remove(at);
        });
    });

    let lines = outcome.lines.clone();
    let acknowledged = outcome.sent.acknowledged.last().unwrap()[0];
    let at = lines.iter().position(|line| *line == format!("line {acknowledged}")).unwrap();
    let mut check = |what: &str, damage: &dyn Fn(&mut Vec<String>)| {
        damage(&mut outcome.lines);
        assert!(!outcome.faults().is_empty(), "not seen: {what}");
        outcome.lines = lines.clone();
    };
    check("a lost line", &|lines| drop(lines.remove(at)));
    check("a doubled line", &|lines| lines.insert(at, lines[at].clone()));
    check("lines in the wrong order", &|lines| lines.swap(at, at - 1));
    check("a line that nobody sent", &|lines| lines.push("line 999999999".into()));

    let replica = outcome.replica.clone();
    let mut check = |what: &str, damage: &dyn Fn(&mut Vec<Json>)| {
        damage(outcome.replica[table].as_array_mut().unwrap());
        assert!(!outcome.faults().is_empty(), "not seen: {what}");
        outcome.replica = replica.clone();
    };
    check("a lost row", &|rows| drop(rows.pop()));
    check("a row that is not in the source", &|rows| rows.push(rows[0].clone()));
    check("another value", &|rows| rows[3][6] = "'1'".into());
    check("another type", &|rows| rows[3][7] = "text".into());
    assert!(outcome.faults().is_empty(), "all damage was undone");
}

/// The places of two updates of one key, one right after the other for that key, as late as possible.
fn two_of_one_key(records: &[Json]) -> (usize, usize) {
    let mut later: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, record) in records.iter().enumerate().rev() {
        let key = record["key"].as_str().unwrap();
        let is_update = record["value"].as_str().is_some_and(|value| value.contains("\"op\":\"u\""));
        if let Some(second) = later.get(key).filter(|_| is_update) {
            return (at, *second);
        }
        match is_update {
            true => drop(later.insert(key, at)),
            false => drop(later.remove(key)),
        }
    }
    panic!("no key was updated twice");
}

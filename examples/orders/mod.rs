//! A shop whose orders follow from their numbers: order 17 is the same in every run. The shop remembers in the log itself
//! how far it is, in the transaction that writes the orders: so it, too, can be killed, and writes each order once.

use clap::Args;
use serde::{Deserialize, Serialize};
use tidemill_core::{
    Error, Result,
    log::Session,
    record::{Record, Timestamp},
    topic::{TopicPartition, TopicSpec},
};

/// An order is at most this much older than one before it.
const DISORDER_MS: u64 = 2_000;
/// 2026-01-01T00:00:00Z, when the shop opens.
const OPENS_AT: i64 = 1_767_225_600_000;
const SKUS: [&str; 8] = ["bowl", "cup", "green tea", "black tea", "kettle", "mug", "pot", "sieve"];

/// An order of one thing.
#[derive(Clone, Serialize, Deserialize)]
pub struct Order {
    /// Its number, from 0.
    pub id: u64,
    /// What was ordered.
    pub sku: String,
    /// Its price.
    pub cents: i64,
    /// When, in milliseconds since 1970 UTC.
    pub ts: i64,
}

/// How much the shop sells.
#[derive(Args)]
pub struct Settings {
    /// How many orders there are in all
    #[arg(long = "orders", default_value_t = 20_000)]
    count: u64,
    /// Orders per second of their own time; they are written as fast as the log takes them
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Orders written at once
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// Other seeds give other orders
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The topic of the orders, which is made if it is not there.
pub async fn topic(session: &dyn Session) -> Result<TopicPartition> {
    if session.topic("orders").await?.is_none() {
        session.create_topic("orders", &TopicSpec::partitions(1)).await?;
    }
    Ok(TopicPartition::new("orders", 0))
}

/// Writes the orders that are not written yet. Tells at its start and every thousand orders how many there are.
pub async fn write(session: &dyn Session, to: &TopicPartition, settings: &Settings, tell: impl Fn(u64)) -> Result<()> {
    // Opening a writer fences older ones of this name, and shows what they committed last.
    let mut writer = session.writer("orders.shop").await?;
    let mut next = match writer.positions().get("next") {
        Some(next) => {
            next.parse().map_err(|e| Error::corrupt(format!("position {next:?} is no number")).with_source(e))?
        }
        None => 0,
    };
    tell(next);
    while next < settings.count {
        let end = settings.count.min(next + settings.batch);
        let orders: Result<Vec<Record>> = (next..end).map(|id| record(&settings.order(id))).collect();
        writer.append(to, orders?).await?;
        writer.set_position("next", Some(end.to_string()));
        writer.commit().await?;
        if end / 1_000 > next / 1_000 || end == settings.count {
            tell(end);
        }
        next = end;
    }
    Ok(())
}

fn record(order: &Order) -> Result<Record> {
    let value = serde_json::to_vec(order).map_err(|e| Error::internal("encode an order").with_source(e))?;
    let record = Record::new(Some(order.sku.clone().into()), Some(value.into()));
    Ok(Record { timestamp: Some(Timestamp(order.ts)), ..record })
}

impl Settings {
    fn order(&self, id: u64) -> Order {
        let mut dice = Dice(self.seed.wrapping_mul(0xd134_2543_de82_ef95) ^ id);
        let sku = SKUS[dice.below(SKUS.len() as u64) as usize];
        let cents = 100 + dice.below(5_000) as i64;
        let ts = OPENS_AT + (id * 1_000 / self.rate) as i64 - dice.below(DISORDER_MS + 1) as i64;
        Order { id, sku: sku.to_owned(), cents, ts }
    }
}

/// Numbers that look random and follow from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

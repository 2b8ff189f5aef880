//! What must be in the log of `orders_per_product`, computed anew from its orders; and twins: the checker is shown to find
//! each fault that it is there for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;
use tidemill_core::record::FetchedRecord;

const WINDOW_MS: i64 = 10_000;

/// Totals of a window's start and a product: orders and cents.
pub type Totals = BTreeMap<(i64, String), (i64, i64)>;

/// What is in the topics.
#[derive(Clone)]
pub struct Found {
    pub orders: Vec<FetchedRecord>,
    pub results: Vec<FetchedRecord>,
    pub late: Vec<FetchedRecord>,
}

#[derive(Deserialize)]
struct Order {
    id: u64,
    sku: String,
    cents: i64,
    ts: i64,
}

#[derive(Deserialize)]
struct PerProduct {
    window_start: i64,
    window_end: i64,
    sku: String,
    orders: i64,
    cents: i64,
}

fn value<'a, T: Deserialize<'a>>(record: &'a FetchedRecord) -> T {
    serde_json::from_slice(record.value.as_deref().expect("a value")).expect("its JSON")
}

impl Found {
    pub fn read(data_dir: &std::path::Path) -> Self {
        let topics = super::program::read_log(data_dir, &["orders", "orders.per-product", "orders.late"]);
        let [orders, results, late] = topics.try_into().expect("three topics");
        Self { orders, results, late }
    }

    /// Everything that is wrong, where there must be `count` orders.
    pub fn faults(&self, count: u64) -> Vec<String> {
        let mut faults = self.order_faults(count);
        if !self.late.is_empty() {
            faults.push(format!("{} orders are late", self.late.len()));
        }
        faults.extend(self.result_faults());
        faults
    }

    fn order_faults(&self, count: u64) -> Vec<String> {
        let (mut faults, mut times) = (Vec::new(), vec![0_u32; count as usize]);
        for record in &self.orders {
            let order: Order = value(record);
            match times.get_mut(order.id as usize) {
                Some(times) => *times += 1,
                None => faults.push(format!("order {} was never made", order.id)),
            }
            if record.key.as_deref() != Some(order.sku.as_bytes()) || record.timestamp.0 != order.ts {
                faults.push(format!("order {} has the key or the time of another", order.id));
            }
        }
        let wrong = times.iter().enumerate().filter(|(_, times)| **times != 1);
        faults.extend(wrong.map(|(id, times)| format!("order {id} is there {times} times")));
        faults
    }

    fn result_faults(&self) -> Vec<String> {
        let (mut faults, mut expected) = (Vec::new(), self.totals());
        let mut seen: BTreeMap<(i64, String), u32> = BTreeMap::new();
        for record in &self.results {
            let result: PerProduct = value(record);
            let group = (result.window_start, result.sku);
            let key: String = serde_json::from_slice(record.key.as_deref().expect("a key")).expect("its JSON");
            let end = result.window_start + WINDOW_MS;
            if result.window_end != end || record.timestamp.0 != end - 1 || key != group.1 {
                faults.push(format!("result {group:?} has another end, time or key"));
            }
            let times = seen.entry(group.clone()).or_default();
            *times += 1;
            if *times > 1 {
                faults.push(format!("result {group:?} is there {times} times"));
                continue;
            }
            let (is, must) = ((result.orders, result.cents), expected.remove(&group));
            if must != Some(is) {
                faults.push(format!("result {group:?} is {is:?} and not {must:?}"));
            }
        }
        faults.extend(expected.keys().map(|group| format!("result {group:?} is missing")));
        faults
    }

    /// The job's results.
    pub fn results(&self) -> Totals {
        let results = self.results.iter().map(value::<PerProduct>);
        results.map(|result| ((result.window_start, result.sku), (result.orders, result.cents))).collect()
    }

    /// What they must be, as a loop over the orders has it.
    fn totals(&self) -> Totals {
        let mut totals = Totals::new();
        for order in self.orders.iter().map(value::<Order>) {
            let total = totals.entry((order.ts - order.ts.rem_euclid(WINDOW_MS), order.sku)).or_default();
            *total = (total.0 + 1, total.1 + order.cents);
        }
        totals
    }

    /// How many orders lie on the first and on the last millisecond of a window, and how far an order is at most behind
    /// one that was written before it.
    pub fn reach(&self) -> (usize, usize, i64) {
        let times: Vec<i64> = self.orders.iter().map(|record| record.timestamp.0).collect();
        let on = |ms| times.iter().filter(|time| time.rem_euclid(WINDOW_MS) == ms).count();
        let (mut latest, mut behind) = (i64::MIN, 0);
        for time in &times {
            latest = latest.max(*time);
            behind = behind.max(latest - time);
        }
        (on(0), on(WINDOW_MS - 1), behind)
    }
}

/// Alters good data in each way that the checker must see. Panics where it does not.
pub fn assert_finds_each_fault(good: &Found, count: u64) {
    let middle = good.results.len() / 2;
    let window = value::<PerProduct>(&good.results[middle]).window_start;
    let alter = |record: &mut FetchedRecord, change: fn(&mut Json)| {
        let mut json: Json = value(record);
        change(&mut json);
        record.value = Some(json.to_string().into());
    };
    let found = |what: &str, fault: &str, sabotage: &dyn Fn(&mut Found)| {
        let mut bad = good.clone();
        sabotage(&mut bad);
        let faults = bad.faults(count);
        assert!(faults.iter().any(|found| found.contains(fault)), "{what} is not seen: {faults:?}");
    };
    found("a doubled result", "is there 2 times", &|bad| bad.results.push(bad.results[middle].clone()));
    found("a lost result", "is missing", &|bad| drop(bad.results.remove(middle)));
    found("a lost window", "is missing", &|bad| {
        bad.results.retain(|record| value::<PerProduct>(record).window_start != window);
    });
    found("a wrong count", "and not Some", &|bad| {
        alter(&mut bad.results[middle], |json| json["orders"] = (json["orders"].as_i64().unwrap() + 1).into());
    });
    found("a wrong sum", "and not Some", &|bad| {
        alter(&mut bad.results[middle], |json| json["cents"] = (json["cents"].as_i64().unwrap() - 1).into());
    });
    found("a result of nothing", "and not None", &|bad| {
        alter(&mut bad.results[middle], |json| json["sku"] = "nothing".into());
    });
    found("a window a second too long", "another end", &|bad| {
        alter(&mut bad.results[middle], |json| {
            json["window_end"] = (json["window_end"].as_i64().unwrap() + 1_000).into()
        });
    });
    found("a doubled order", "order 7 is there 2 times", &|bad| bad.orders.push(bad.orders[7].clone()));
    found("a doubled order, counted once", "and not Some", &|bad| bad.orders.push(bad.orders[7].clone()));
    found("a lost order", "order 7 is there 0 times", &|bad| drop(bad.orders.remove(7)));
    found("an order of nobody", "was never made", &|bad| {
        alter(&mut bad.orders[7], |json| json["id"] = 1_000_000_000.into());
    });
    found("a late order", "late", &|bad| bad.late.push(bad.orders[7].clone()));
}

//! What the demo shows at a moment, and how it looks: a table for a terminal, a line elsewhere.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tidemill_streams::WindowView;

use super::{
    revenue::{Revenue, clock},
    shop::title_of,
};

/// Points of the sparkline.
const HISTORY: usize = 32;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// All that is shown.
#[derive(Debug, Default)]
pub struct Scene {
    pub elapsed: Duration,
    pub seconds: u64,
    pub now_ms: i64,
    /// Inserts, updates and deletes that the shop's program committed.
    pub written: (u64, u64, u64),
    /// Changes a second that reached the replica, oldest first.
    pub rates: VecDeque<u64>,
    /// How old the replica is, in milliseconds: the age of its newest order while the shop has a newer one.
    pub replica_lag_ms: i64,
    /// How old the order is that the job read last, while more are waiting.
    pub job_lag_ms: i64,
    pub orders_read: u64,
    pub late: u64,
    pub windows: Vec<WindowView<String, Revenue>>,
}

impl Scene {
    pub fn push_rate(&mut self, rate: u64) {
        self.rates.push_back(rate);
        if self.rates.len() > HISTORY {
            self.rates.pop_front();
        }
    }

    /// One line, for what is no terminal.
    pub fn line(&self) -> String {
        let (inserts, updates, deletes) = self.written;
        format!(
            "{:>3} s  shop wrote {inserts} inserts, {updates} updates, {deletes} deletes; {} records/s; replica {}; \
             job read {} orders, {} late",
            self.elapsed.as_secs(),
            self.rates.back().unwrap_or(&0),
            lag(self.replica_lag_ms),
            self.orders_read,
            self.late,
        )
    }

    /// A closed window in one line.
    pub fn closed_line(window: &WindowView<String, Revenue>) -> String {
        let (orders, cents) = total(window);
        let best = window.groups.iter().max_by_key(|(_, (_, cents))| *cents);
        let best = best.map(|(sku, (_, cents))| format!("; most from {}: {}", title_of(sku), money(*cents)));
        format!(
            "       window {} closed: {orders} orders, revenue {}{}",
            span(window),
            money(cents),
            best.unwrap_or_default()
        )
    }

    /// The table, line by line, at most 80 columns wide.
    pub fn table(&self) -> Vec<String> {
        let (inserts, updates, deletes) = self.written;
        let mut lines = vec![
            format!("{:<58}{:>20}", "A shop, its replica and a stream job, in one process", self.time()),
            String::new(),
            format!("  shop.sqlite   {inserts} inserts, {updates} updates, {deletes} deletes"),
            format!("  log           {:>6} records/s  {}", self.rates.back().unwrap_or(&0), sparkline(&self.rates)),
            format!("  replica       {}", lag(self.replica_lag_ms)),
            format!("  job           {}, {} orders read, {} late", lag(self.job_lag_ms), self.orders_read, self.late),
            String::new(),
        ];
        lines.extend(self.products());
        lines
    }

    fn time(&self) -> String {
        match self.seconds {
            0 => format!("{} s, Ctrl-C ends it", self.elapsed.as_secs()),
            seconds => format!("{} of {seconds} s", self.elapsed.as_secs().min(seconds)),
        }
    }

    /// The last closed window beside the first open one.
    fn products(&self) -> Vec<String> {
        let closed = self.windows.iter().rev().find(|window| window.is_closed);
        let open = self.windows.iter().find(|window| !window.is_closed);
        let name = |window: Option<&WindowView<_, _>>, what: &str| match window {
            Some(window) => format!("{} {what}", span(window)),
            None => format!("no window {what} yet"),
        };
        let heading = |left: &str, middle: &str, right: &str| format!("  {left:<16}{middle:>26}{right:>28}");
        let mut lines = vec![
            heading("", &name(closed, "closed"), &name(open, "open")),
            format!("  {:<16}{:>12}{:>14}{:>14}{:>14}", "product", "orders", "revenue", "orders", "revenue"),
        ];
        let mut products: BTreeMap<&str, [Option<Revenue>; 2]> = BTreeMap::new();
        for (side, window) in [closed, open].into_iter().enumerate() {
            for (sku, revenue) in window.into_iter().flat_map(|window| &window.groups) {
                products.entry(title_of(sku)).or_default()[side] = Some(*revenue);
            }
        }
        for (title, sides) in products {
            let [(a, b), (c, d)] =
                sides.map(|side| side.map_or_else(Default::default, |(n, cents)| (n.to_string(), money(cents))));
            lines.push(format!("  {title:<16}{a:>12}{b:>14}{c:>14}{d:>14}"));
        }
        lines
    }
}

fn total(window: &WindowView<String, Revenue>) -> Revenue {
    window.groups.iter().fold((0, 0), |(orders, cents), (_, group)| (orders + group.0, cents + group.1))
}

fn span(window: &WindowView<String, Revenue>) -> String {
    format!("{}-{}", clock(window.window.start), clock(window.window.end))
}

fn lag(ms: i64) -> String {
    if ms == 0 { "in step".into() } else { format!("{ms} ms behind") }
}

/// Cents as an amount: `1,204.50`.
pub fn money(cents: i64) -> String {
    let whole = (cents / 100).unsigned_abs().to_string();
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{}{grouped}.{:02}", if cents < 0 { "-" } else { "" }, (cents % 100).abs())
}

fn sparkline(rates: &VecDeque<u64>) -> String {
    let top = rates.iter().copied().max().unwrap_or(0).max(1);
    rates.iter().map(|rate| BARS[(rate * (BARS.len() as u64 - 1)).div_ceil(top) as usize]).collect()
}

#[cfg(test)]
mod tests {
    use tidemill_streams::window::Window;

    use super::*;

    #[test]
    fn the_table_has_both_windows_and_fits() {
        let groups = vec![("TEA-01".to_owned(), (101, 1_140_210)), ("POT-01".to_owned(), (7, 33_600))];
        let closed = WindowView { window: Window { start: 0, end: 5000 }, is_closed: true, groups: groups.clone() };
        let open = WindowView { window: Window { start: 5000, end: 10_000 }, is_closed: false, groups };
        let mut scene = Scene { windows: vec![closed, open], seconds: 20, replica_lag_ms: 18, ..Scene::default() };
        [0, 100, 400, 800].into_iter().for_each(|rate| scene.push_rate(rate));
        let table = scene.table();
        assert!(table.iter().all(|line| line.chars().count() <= 80), "{table:#?}");
        let text = table.join("\n");
        for part in
            ["00:00:00-00:00:05 closed", "00:00:05-00:00:10 open", "11,402.10", "Green tea", "▁▂▅█", "18 ms behind"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn amounts_have_two_digits() {
        assert_eq!([0, 5, 100, 123_456_789, -250].map(money), ["0.00", "0.05", "1.00", "1,234,567.89", "-2.50"]);
    }
}

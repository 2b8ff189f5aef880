//! A chunk's rows by window.

use std::collections::HashMap;

use super::{Tumbling, Window};

/// A chunk's rows sorted by window. Keeps its memory from chunk to chunk.
#[derive(Default)]
pub(super) struct ByWindow {
    numbers: HashMap<i64, usize>,
    windows: Vec<Window>,
    rows: Vec<Vec<u32>>,
}

impl ByWindow {
    pub(super) fn split(&mut self, windows: &Tumbling, times: &[i64]) {
        self.numbers.clear();
        self.windows.clear();
        self.rows.iter_mut().for_each(Vec::clear);
        // Rows that follow each other mostly share a window.
        let mut current = (Window { start: 0, end: 0 }, 0);
        for (row, time) in times.iter().enumerate() {
            if !current.0.contains(*time) {
                let window = windows.window_of(*time);
                current = (window, self.number(window));
            }
            self.rows[current.1].push(row as u32);
        }
    }

    fn number(&mut self, window: Window) -> usize {
        let next = self.windows.len();
        let number = *self.numbers.entry(window.start).or_insert(next);
        if number == next {
            self.windows.push(window);
            if self.rows.len() == next {
                self.rows.push(Vec::new());
            }
        }
        number
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = (Window, &[u32])> {
        self.windows.iter().copied().zip(self.rows.iter().map(Vec::as_slice))
    }
}

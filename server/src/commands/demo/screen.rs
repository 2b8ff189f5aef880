//! Where the demo's scenes go: redrawn in place on a terminal that is high enough, lines elsewhere.

use std::time::Duration;

use console::Term;

use super::scene::Scene;

/// Rows that a terminal must have, so that the cursor can go back to the table's first line.
const LEAST_ROWS: u16 = 18;

/// How the demo is shown.
pub struct Screen {
    term: Term,
    /// Whether the table is redrawn in place.
    is_live: bool,
    drawn: usize,
    told_seconds: Option<u64>,
    /// End of the last window that was told of.
    told_window: i64,
}

impl Screen {
    pub fn new() -> Self {
        let term = Term::stdout();
        let is_live = term.is_term() && term.size().0 >= LEAST_ROWS;
        Self { term, is_live, drawn: 0, told_seconds: None, told_window: i64::MIN }
    }

    /// How often there is something new to see.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(if self.is_live { 250 } else { 200 })
    }

    pub fn show(&mut self, scene: &Scene) -> std::io::Result<()> {
        match self.is_live {
            true => self.redraw(scene),
            false => self.tell(scene),
        }
    }

    fn redraw(&mut self, scene: &Scene) -> std::io::Result<()> {
        let width = usize::from(self.term.size().1).max(20);
        let lines: Vec<String> =
            scene.table().iter().map(|line| console::truncate_str(line, width - 1, "").into_owned()).collect();
        // One write a frame: a terminal that shows half of it would flicker.
        let mut frame = String::new();
        if self.drawn > 0 {
            // An echoed ^C has moved the cursor to the right.
            frame.push_str(&format!("\r\x1b[{}A", self.drawn));
        }
        for line in &lines {
            frame.push_str(&format!("{line}\x1b[K\n"));
        }
        // A shorter frame leaves nothing of the last one.
        frame.push_str("\x1b[J");
        self.drawn = lines.len();
        self.term.write_str(&frame)?;
        self.term.flush()
    }

    /// A line a second, and one for each window that closes.
    fn tell(&mut self, scene: &Scene) -> std::io::Result<()> {
        for window in scene.windows.iter().filter(|window| window.is_closed) {
            if window.window.end > self.told_window {
                self.told_window = window.window.end;
                self.term.write_line(&Scene::closed_line(window))?;
            }
        }
        if self.told_seconds < Some(scene.elapsed.as_secs()) {
            self.told_seconds = Some(scene.elapsed.as_secs());
            self.term.write_line(&scene.line())?;
        }
        Ok(())
    }
}

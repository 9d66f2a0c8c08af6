//! Measuring: several contenders one after another, round after round, so that what else the host does hits all alike.
//!
//! It knows nothing of what is measured.

use std::time::{Duration, Instant};

use testyard_model::Problem;

/// One of those that are compared.
pub struct Contender<'a> {
    /// What it is called in the report.
    pub name: String,
    /// Does it once and says how long that took.
    pub once: Box<dyn FnMut() -> Result<Duration, Problem> + 'a>,
}

impl<'a> Contender<'a> {
    /// A contender.
    pub fn new(name: impl Into<String>, once: impl FnMut() -> Result<Duration, Problem> + 'a) -> Self {
        Self { name: name.into(), once: Box::new(once) }
    }
}

/// What a contender's rounds took.
#[derive(Debug, Clone)]
pub struct Times {
    /// What it is called.
    pub name: String,
    /// Shortest first.
    sorted: Vec<Duration>,
}

impl Times {
    /// Of these durations, in any order.
    #[must_use]
    pub fn new(name: impl Into<String>, mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self { name: name.into(), sorted: all }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// Half of the rounds were shorter.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.longer_than(5)
    }

    /// So many of ten rounds were shorter.
    #[must_use]
    pub fn longer_than(&self, tenths: usize) -> Duration {
        self.sorted.get(self.sorted.len() * tenths / 10).copied().unwrap_or_default()
    }

    /// The median as many times as another's.
    #[must_use]
    pub fn ratio_to(&self, other: &Self) -> f64 {
        ratio(self.median(), other.median())
    }
}

/// How many times `other` fits into `one`.
#[must_use]
pub fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64().max(1e-9)
}

/// Runs each once a round, after a few rounds that do not count.
///
/// # Errors
/// The first that a contender gives.
pub fn alternate(rounds: usize, mut contenders: Vec<Contender<'_>>) -> Result<Vec<Times>, Problem> {
    let mut times = vec![Vec::with_capacity(rounds); contenders.len()];
    let before = (rounds / 10).clamp(1, 10);
    for round in 0..before + rounds {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            let took =
                (contender.once)().map_err(|problem| problem.because(format!("while measuring {}", contender.name)))?;
            if round >= before {
                times.push(took);
            }
        }
    }
    Ok(contenders.iter().zip(times).map(|(contender, times)| Times::new(&contender.name, times)).collect())
}

/// What a contender does, with the time that it took.
pub fn timed(mut once: impl FnMut() -> Result<(), Problem>) -> impl FnMut() -> Result<Duration, Problem> {
    move || {
        let start = Instant::now();
        once()?;
        Ok(start.elapsed())
    }
}

/// A duration as people read it.
#[must_use]
pub fn shown(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_contender_takes_its_turn() {
        let mut order = Vec::new();
        let order = std::cell::RefCell::new(&mut order);
        let contender = |name: &'static str, ms| {
            let order = &order;
            Contender::new(name, move || {
                order.borrow_mut().push(name);
                Ok(Duration::from_millis(ms))
            })
        };
        let times = alternate(2, vec![contender("one", 30), contender("two", 10)]).expect("nothing fails");
        assert_eq!(**order.borrow(), ["one", "two", "one", "two", "one", "two"]);
        assert!((times[0].ratio_to(&times[1]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn times_are_shown_in_three_digits() {
        for (us, text) in [(12, "12 µs"), (1_234, "1.23 ms"), (2_500_000, "2.50 s")] {
            assert_eq!(shown(Duration::from_micros(us)), text);
        }
    }
}

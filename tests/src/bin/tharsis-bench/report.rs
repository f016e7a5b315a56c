//! Results: medians and ratios, as a table for people and as JSON for whoever compares runs.

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

/// One thing measured, and what it is measured against.
#[derive(Serialize)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    #[serde(flatten)]
    ours: Rate,
    #[serde(flatten)]
    aim: Option<Aimed>,
    against: Vec<Against>,
}

/// What we want, and whether it came out so.
#[derive(Clone, Copy, Serialize)]
struct Aimed {
    aim: Aim,
    met: bool,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    fn of(self, measured: f64) -> Aimed {
        let met = match self {
            Self::AtLeast(least) => measured >= least,
            Self::AtMost(most) => measured <= most,
        };
        Aimed { aim: self, met }
    }
}

impl std::fmt::Display for Aimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sign, number) = match self.aim {
            Aim::AtLeast(number) => ('≥', number),
            Aim::AtMost(number) => ('≤', number),
        };
        let verdict = if self.met { "met" } else { "MISSED" };
        write!(f, "aim {sign} {}: {verdict}", readable(number))
    }
}

#[derive(Serialize)]
struct Rate {
    median: f64,
    rounds: Vec<f64>,
}

#[derive(Serialize)]
struct Against {
    name: &'static str,
    #[serde(flatten)]
    rate: Rate,
    /// The median of the rounds' ratios: how fast the machine is changes more from one round to the next than within one.
    ratio: f64,
    #[serde(flatten)]
    aim: Option<Aimed>,
}

impl From<&[f64]> for Rate {
    fn from(rounds: &[f64]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = match (sorted.len() / 2, sorted.len() % 2) {
            (_, 0) if sorted.is_empty() => f64::NAN,
            (middle, 0) => f64::midpoint(sorted[middle - 1], sorted[middle]),
            (middle, _) => sorted[middle],
        };
        Self {
            median,
            rounds: rounds.to_vec(),
        }
    }
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, rounds: &[f64]) -> Self {
        Self {
            what: what.into(),
            unit,
            ours: rounds.into(),
            aim: None,
            against: Vec::new(),
        }
    }

    /// What is wanted at least, whatever the limit is.
    pub(crate) fn aim(self, least: f64) -> Self {
        self.aimed(Aim::AtLeast(least))
    }

    /// What is wanted at most, whatever the limit is.
    pub(crate) fn aim_at_most(self, most: f64) -> Self {
        self.aimed(Aim::AtMost(most))
    }

    fn aimed(self, aim: Aim) -> Self {
        Self {
            aim: Some(aim.of(self.ours.median)),
            ..self
        }
    }

    /// Beside what was measured in the same rounds; `aim` is the least ratio that we want.
    pub(crate) fn against(mut self, name: &'static str, rounds: &[f64], aim: Option<f64>) -> Self {
        let rate = Rate::from(rounds);
        let of_rounds = self.ours.rounds.iter().zip(rounds);
        let of_rounds: Vec<f64> = of_rounds.map(|(ours, other)| ours / other).collect();
        let ratio = Rate::from(&of_rounds[..]).median;
        self.against.push(Against {
            name,
            rate,
            ratio,
            aim: aim.map(|least| Aim::AtLeast(least).of(ratio)),
        });
        self
    }
}

/// Prints the table, and writes JSON to `THARSIS_BENCH_JSON`, or else to `<name>.json` in `THARSIS_BENCH_DIR`, or
/// else prints that too.
#[expect(
    clippy::print_stdout,
    reason = "the results are what this program is for"
)]
pub(crate) fn report(name: &'static str, rows: &[Row]) -> anyhow::Result<()> {
    for Row {
        what,
        unit,
        ours,
        aim,
        against,
    } in rows
    {
        println!(
            "{what:<14} {:>28} {:>10} {unit}  {}",
            "tharsis",
            readable(ours.median),
            verdict(aim.as_ref())
        );
        for Against {
            name,
            rate,
            ratio,
            aim,
        } in against
        {
            println!(
                "{:<14} {name:>28} {:>10} {unit}  ratio {ratio:>6.2}  {}",
                "",
                readable(rate.median),
                verdict(aim.as_ref())
            );
        }
    }
    let json = serde_json::to_string_pretty(&serde_json::json!({ "bench": name, "rows": rows }))?;
    let in_folder =
        || Some(PathBuf::from(std::env::var_os("THARSIS_BENCH_DIR")?).join(format!("{name}.json")));
    let path = std::env::var_os("THARSIS_BENCH_JSON").map(PathBuf::from);
    let Some(path) = path.or_else(in_folder) else {
        println!("{json}");
        return Ok(());
    };
    std::fs::write(&path, json).with_context(|| format!("{} can't be written", path.display()))
}

fn verdict(aim: Option<&Aimed>) -> String {
    aim.map(ToString::to_string).unwrap_or_default()
}

/// A few digits for small numbers, and groups of them for large ones.
fn readable(rate: f64) -> String {
    if rate < 100.0 {
        return format!("{rate:.2}");
    }
    let digits = format!("{rate:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

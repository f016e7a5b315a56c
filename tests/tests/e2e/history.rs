//! Whether what jobs were answered can have come about, by what had been given and taken when.
//!
//! What a job gets hangs on one thing, which is taken and given back, one change after the other. A decision is made on
//! the state after some of them: after those at least that the asker knew of, and after none that had not begun when it
//! was answered. Whoever asks after somebody else was answered sees no earlier state than that one did.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells what came before what.
#[derive(Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    pub(crate) fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// Something was given or taken. At first it is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// When it was asked for.
    pub(crate) begun: u64,
    pub(crate) gives: bool,
    /// Of its event in the log.
    pub(crate) position: u64,
}

/// A credential was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// How many changes the consistency token tells of that was presented.
    pub(crate) knowing: usize,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The token's id.
    Issued(String),
    /// The reason.
    Refused(String),
    /// Neither can be told from the answer.
    Unknown,
}

/// What is on the record.
#[derive(Default)]
pub(crate) struct Audit {
    /// The ids of tokens.
    pub(crate) issued: Vec<String>,
    /// The reasons of refusals.
    pub(crate) refused: BTreeSet<String>,
    /// Of both.
    pub(crate) decisions: Vec<Decision>,
}

/// What was decided, by its event.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) issued: bool,
    /// How far it says that it knew the changes.
    pub(crate) revision: u64,
}

/// Checks the answers against the changes, and against what is on the record.
pub(crate) fn check(changes: &[Change], asks: &[Ask], audit: &Audit) -> Result<(), String> {
    let given = |state: usize| state == 0 || changes[state - 1].gives;
    let mut asks: Vec<_> = asks.iter().collect();
    asks.sort_by_key(|ask| ask.begun);
    // The earliest state that explains each answer: a later one would only leave less to those after it.
    let mut explained: Vec<(u64, usize)> = Vec::new();
    for ask in &asks {
        let issued = match &ask.outcome {
            Outcome::Issued(_) => true,
            Outcome::Refused(_) => false,
            Outcome::Unknown => continue,
        };
        let before = explained.iter().filter(|(ended, _)| *ended < ask.begun);
        let seen = before.map(|(_, state)| *state).max().unwrap_or(0);
        let begun = changes
            .iter()
            .filter(|change| change.begun < ask.ended)
            .count();
        let mut states = seen.max(ask.knowing)..=begun;
        let state = states
            .find(|state| given(*state) == issued)
            .ok_or_else(|| {
                format!("{ask:?} has seen {seen} changes, and at most {begun} of {changes:?}")
            })?;
        explained.push((ask.ended, state));
    }
    for ask in &asks {
        if let Outcome::Refused(reason) = &ask.outcome
            && !audit.refused.contains(reason)
        {
            return Err(format!("{reason} is not on the record"));
        }
    }
    for decision in &audit.decisions {
        let known = changes.partition_point(|change| change.position <= decision.revision);
        if given(known) != decision.issued {
            return Err(format!(
                "{decision:?} is not what was so after {known} of {changes:?}"
            ));
        }
    }
    let recorded: BTreeSet<&String> = audit.issued.iter().collect();
    if recorded.len() != audit.issued.len() {
        return Err("a token is on the record twice".to_owned());
    }
    let handed_out = asks.iter().filter_map(|ask| match &ask.outcome {
        Outcome::Issued(id) => Some(id),
        Outcome::Refused(_) | Outcome::Unknown => None,
    });
    let handed_out: BTreeSet<_> = handed_out.collect();
    if let Some(id) = handed_out.difference(&recorded).next() {
        return Err(format!("{id} was issued, and is not on the record"));
    }
    let lost = asks
        .iter()
        .filter(|ask| matches!(ask.outcome, Outcome::Unknown));
    let kept_back = recorded.difference(&handed_out).count();
    if kept_back > lost.count() {
        return Err(format!("{kept_back} on the record were handed to nobody"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(begun: u64, ended: u64, knowing: usize, issued: bool) -> Ask {
        let outcome = if issued {
            Outcome::Issued(begun.to_string())
        } else {
            Outcome::Refused("NOT_ASSIGNED".to_owned())
        };
        Ask {
            begun,
            ended,
            knowing,
            outcome,
        }
    }

    /// Taken from 10 on, and given back from 20 on.
    fn verdict(asks: &[Ask]) -> Result<(), String> {
        let issued = asks.iter().filter_map(|ask| match &ask.outcome {
            Outcome::Issued(id) => Some(id.as_str()),
            _ => None,
        });
        check(&changes(), asks, &on_record(&issued.collect::<Vec<_>>()))
    }

    fn changes() -> [Change; 2] {
        [(10, false, 3), (20, true, 7)].map(|(begun, gives, position)| Change {
            begun,
            gives,
            position,
        })
    }

    fn on_record(issued: &[&str]) -> Audit {
        Audit {
            issued: issued.iter().map(ToString::to_string).collect(),
            refused: ["NOT_ASSIGNED".to_owned()].into(),
            decisions: vec![],
        }
    }

    #[test]
    fn what_can_have_come_about_is_allowed() {
        // Who does not know of the taking may be late.
        verdict(&[
            ask(1, 2, 0, true),
            ask(9, 11, 0, false),
            ask(12, 13, 1, false),
            ask(21, 22, 1, true),
        ])
        .expect("allowed");
        verdict(&[
            ask(12, 13, 0, true),
            ask(14, 15, 1, false),
            ask(14, 21, 1, true),
        ])
        .expect("allowed");
    }

    #[test]
    fn what_can_not_is_told() {
        for impossible in [
            // Before it was taken at all.
            vec![ask(1, 2, 0, false)],
            // Who presents that it was taken gets it.
            vec![ask(12, 13, 1, true)],
            // Who presents that it was given back does not.
            vec![ask(22, 23, 2, false)],
            // It was refused, and then issued without having been given back.
            vec![ask(11, 12, 0, false), ask(13, 14, 0, true)],
            // It was issued again, and then refused.
            vec![
                ask(11, 12, 0, false),
                ask(21, 22, 0, true),
                ask(23, 24, 0, false),
            ],
        ] {
            assert!(verdict(&impossible).is_err(), "{impossible:?}");
        }
        let asked = [ask(1, 2, 0, true)];
        for wrong in [&[][..], &["1", "2"], &["1", "1"]] {
            assert!(check(&[], &asked, &on_record(wrong)).is_err(), "{wrong:?}");
        }
        let taken = [Change {
            begun: 0,
            gives: false,
            position: 1,
        }];
        let refused = [ask(1, 2, 1, false)];
        check(&taken, &refused, &on_record(&[])).expect("allowed");
        check(&taken, &refused, &Audit::default()).expect_err("not on the record");
    }
    #[test]
    fn a_decision_names_a_revision_at_which_it_is_right() {
        for (revision, issued) in [(2, true), (3, false), (6, false), (7, true), (9, true)] {
            let verdict = |issued| {
                let decisions = vec![Decision { issued, revision }];
                let audit = Audit {
                    decisions,
                    ..Audit::default()
                };
                check(&changes(), &[], &audit)
            };
            verdict(issued).expect("allowed");
            verdict(!issued).expect_err("otherwise then");
        }
    }
}

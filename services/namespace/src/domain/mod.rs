//! What may happen to groups, workspaces, memberships, teams and limits: pure deciders. What they lean on beyond their own
//! stream comes in with the command; the append checks that it still holds.

pub mod group;
pub mod limit;
pub mod membership;
pub mod team;
pub mod workspace;

/// Where a group or workspace is to lie.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// Names in its path; for what has something below, in the longest path there.
    pub depth: usize,
    /// The most names in a path.
    pub max_depth: usize,
    /// Whether a group or workspace there has the name.
    pub name_taken: bool,
    /// Groups, or workspaces, that are there already; 0 at the top, where there is no limit.
    pub siblings: i64,
    /// The most of them.
    pub max_siblings: i64,
}

/// Why a group or workspace can't lie there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The name is used below the same parent.
    #[error("a group or workspace with this name exists there already; choose another name")]
    NameTaken,
    /// A path would be too long.
    #[error("there would be a path of {depth} names, {max} at most are allowed")]
    TooDeep {
        /// Names that there would be.
        depth: usize,
        /// The limit.
        max: usize,
    },
    /// The group above is full.
    #[error("the group above has {0} of them already, more are not allowed")]
    TooManySiblings(i64),
}

impl Destination {
    fn check(self) -> Result<(), NoRoom> {
        if self.name_taken {
            Err(NoRoom::NameTaken)
        } else if self.depth > self.max_depth {
            Err(NoRoom::TooDeep {
                depth: self.depth,
                max: self.max_depth,
            })
        } else if self.siblings >= self.max_siblings {
            Err(NoRoom::TooManySiblings(self.siblings))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Room for one more, just.
    pub(super) fn tight() -> Destination {
        Destination {
            depth: 20,
            max_depth: 20,
            name_taken: false,
            siblings: 999,
            max_siblings: 1_000,
        }
    }

    #[test]
    fn limits_hold_at_their_edges() {
        assert_eq!(tight().check(), Ok(()));
        let deep = Destination {
            depth: 21,
            ..tight()
        };
        assert_eq!(deep.check(), Err(NoRoom::TooDeep { depth: 21, max: 20 }));
        let full = Destination {
            siblings: 1_000,
            ..tight()
        };
        assert_eq!(full.check(), Err(NoRoom::TooManySiblings(1_000)));
        let taken = Destination {
            name_taken: true,
            ..tight()
        };
        assert_eq!(taken.check(), Err(NoRoom::NameTaken));
    }
}

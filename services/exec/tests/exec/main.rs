//! `tharsis-exec` as a job's runner starts it, against the whole set.

mod clouds;
mod command;
mod failures;
mod fresh;
mod printing;
mod scene;

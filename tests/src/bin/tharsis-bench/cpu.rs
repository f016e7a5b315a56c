//! What a process has used of the processors.

use std::fs;

use anyhow::Context as _;

/// The clock of `/proc/PID/stat`, in ticks a second: on Linux always 100 as user space sees it (`man 7 time`).
const TICKS: f64 = 100.0;

/// Seconds of CPU that a process has used, in user space and in the kernel.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .context("the CPU time of a process is read from /proc, which only Linux has")?;
    // The command's name stands in parentheses and may hold anything; utime and stime are the 14th and 15th word.
    let words = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: Vec<f64> = words
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

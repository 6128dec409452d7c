//! CPU time and memory of processes and what they started, from `/proc` (proc(5)).

use std::collections::BTreeMap;

/// Kernel clock ticks a second as user space sees them; 100 on every Linux port Rust has.
const TICKS_PER_SECOND: f64 = 100.0;

/// Of one process: parent, own CPU ticks, ticks of its children that it has waited for.
struct Stat {
    parent: u32,
    own: u64,
    waited: u64,
}

/// CPU seconds of these processes and of all that descend from them, by program; of descendants that ended, under
/// `children of` their parent's name.
pub fn seconds_by_name(roots: &[u32]) -> BTreeMap<String, f64> {
    let all = processes();
    let within = |pid: u32| {
        let mut at = pid;
        // A pid may be reused while we look: no chain is longer than there are processes.
        for _ in 0..all.len() {
            if roots.contains(&at) {
                return true;
            }
            match all.get(&at) {
                Some(stat) if stat.parent > 1 => at = stat.parent,
                _ => return false,
            }
        }
        false
    };
    let mut seconds = BTreeMap::new();
    for (pid, stat) in all.iter().filter(|(pid, _)| within(**pid)) {
        let name = name(*pid);
        *seconds.entry(format!("children of {name}")).or_insert(0.0) += stat.waited as f64 / TICKS_PER_SECOND;
        *seconds.entry(name).or_insert(0.0) += stat.own as f64 / TICKS_PER_SECOND;
    }
    seconds
}

/// CPU seconds of the children this process has waited for.
pub fn seconds_waited_for() -> f64 {
    stat(std::process::id()).map_or(0.0, |stat| stat.waited as f64 / TICKS_PER_SECOND)
}

/// Resident memory in bytes (`VmRSS`), pages of shared libraries included.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The name the kernel knows it by.
pub fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Everything below `root`, without it.
pub fn descendants(root: u32) -> Vec<u32> {
    let all = processes();
    let mut found = vec![root];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(all.iter().filter(|(_, stat)| stat.parent == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

fn processes() -> BTreeMap<u32, Stat> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in brackets may hold anything.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let number = |n: usize| fields.get(n)?.parse::<u64>().ok();
    let parent = u32::try_from(number(1)?).ok()?;
    Some(Stat { parent, own: number(11)? + number(12)?, waited: number(13)? + number(14)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_below_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(descendants(std::process::id()).contains(&child.id()));
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

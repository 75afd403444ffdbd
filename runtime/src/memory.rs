//! Memory: what there is, what a process uses, and how to say it.

use std::fs;
use std::path::Path;

/// Bytes that this process may still allocate: what the machine has available, or what its control group leaves where
/// that is less. `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let machine = meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let group = control_group_bytes("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
        .or_else(|| {
            let folder = "/sys/fs/cgroup/memory";
            control_group_bytes(format!("{folder}/memory.limit_in_bytes"), format!("{folder}/memory.usage_in_bytes"))
        })
        .unwrap_or(u64::MAX);
    Some(machine.min(group))
}

/// Most bytes that were resident at once since the process began. `None` where the system does not say.
pub fn peak_resident_bytes() -> Option<u64> {
    meminfo_bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Bytes that are resident now. `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    meminfo_bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The number of bytes on a line such as `MemAvailable:   24000 kB`.
fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kibibytes: u64 = line[key.len()..].split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// What a control group leaves: its limit less what is in use, of which the page cache can be reclaimed.
fn control_group_bytes(limit: impl AsRef<Path>, used: impl AsRef<Path>) -> Option<u64> {
    let folder = limit.as_ref().parent()?.to_owned();
    let limit: u64 = fs::read_to_string(&limit).ok()?.trim().parse().ok()?;
    let used: u64 = fs::read_to_string(used).ok()?.trim().parse().ok()?;
    let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let reclaimable = statistics
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file ").or_else(|| line.strip_prefix("total_inactive_file ")))
        .and_then(|value| value.parse().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_meminfo() {
        let text = "MemTotal:       24576000 kB\nMemAvailable:   20480000 kB\n";
        assert_eq!(meminfo_bytes(text, "MemAvailable:"), Some(20480000 * 1024));
        assert_eq!(meminfo_bytes(text, "Swap:"), None);
    }

    #[test]
    fn a_control_group_may_reclaim_its_page_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        fs::write(path("memory.max"), "1000\n").unwrap();
        fs::write(path("memory.current"), "700\n").unwrap();
        fs::write(path("memory.stat"), "anon 300\ninactive_file 400\n").unwrap();
        assert_eq!(control_group_bytes(path("memory.max"), path("memory.current")), Some(700));
        fs::write(path("memory.max"), "max\n").unwrap();
        assert_eq!(control_group_bytes(path("memory.max"), path("memory.current")), None);
    }
}

//! System calls that an instance of an engine does without, for `--enable-seccomp`: those that
//! start programs, look into other processes, change namespaces, mounts or modules.
//!
//! Everything else stays allowed; a call that is refused ends the process. The list holds all that
//! slirp4netns refuses, and what else opens ways into the kernel that nothing here takes. `prctl`
//! stays for the one thing that every new thread does with it: its name.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use super::SetupError;

/// What is refused whatever its arguments are.
const REFUSED: [libc::c_long; 35] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_lookup_dcookie,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Refuses them in this thread and those that it starts, for good.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn refuse_dangerous_calls() -> Result<(), SetupError> {
    let fail = |error: &dyn std::fmt::Display| SetupError::Host {
        what: "refuse dangerous system calls (seccomp)".to_owned(),
        source: io::Error::other(error.to_string()),
    };
    let program = program().map_err(|error| fail(&error))?;
    apply_filter(&program).map_err(|error| fail(&error))
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    // Not negative, and within 32 bits.
    let naming = libc::PR_SET_NAME as u64;
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, naming)?;
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(vec![other])?]);
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::KillProcess, architecture)?
        .try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_fits_the_kernel() {
        // BPF_MAXINSNS of linux/bpf_common.h.
        assert!((50..4096).contains(&program().unwrap().len()));
    }
}

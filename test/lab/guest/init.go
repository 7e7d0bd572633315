// The duties of process 1: file systems, kernel modules, an orderly shutdown.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"unsafe"
)

func mountKernelFilesystems() error {
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"proc", "/proc", "proc", syscall.MS_NOSUID | syscall.MS_NOEXEC | syscall.MS_NODEV, ""},
		{"sysfs", "/sys", "sysfs", syscall.MS_NOSUID | syscall.MS_NOEXEC | syscall.MS_NODEV, ""},
		{"devtmpfs", "/dev", "devtmpfs", syscall.MS_NOSUID, ""},
		{"devpts", "/dev/pts", "devpts", syscall.MS_NOSUID | syscall.MS_NOEXEC, "mode=620,ptmxmode=666"},
		{"tmpfs", "/run", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=755"},
		{"tmpfs", "/tmp", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=1777"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

// loadModules inserts all modules of a directory in the order of the file names, which the image builder numbers by
// dependency.
func loadModules(directory string) error {
	names, err := filepath.Glob(filepath.Join(directory, "*.ko"))
	if err != nil {
		return err
	}
	sort.Strings(names)
	for _, name := range names {
		image, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if len(image) == 0 {
			return fmt.Errorf("module %s is empty", name)
		}
		parameters := []byte{0}
		_, _, errno := syscall.Syscall(syscall.SYS_INIT_MODULE,
			uintptr(unsafe.Pointer(&image[0])), uintptr(len(image)), uintptr(unsafe.Pointer(&parameters[0])))
		if errno != 0 && errno != syscall.EEXIST {
			return fmt.Errorf("load module %s: %w", filepath.Base(name), errno)
		}
	}
	return nil
}

// labOptions are the faults that a test requests with `caa.lab=` on the kernel command line, separated by commas.
func labOptions() (map[string]bool, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	return parseLabOptions(string(line))
}

func parseLabOptions(commandLine string) (map[string]bool, error) {
	options := map[string]bool{}
	for _, word := range strings.Fields(commandLine) {
		name, value, _ := strings.Cut(word, "=")
		if name != "caa.lab" {
			continue
		}
		for _, option := range strings.Split(value, ",") {
			switch option {
			case "nodhcp", "nolisten", "panic", "poweroff", "slow":
				options[option] = true
			default:
				return nil, fmt.Errorf("kernel command line: caa.lab=%s is not known", option)
			}
		}
	}
	return options, nil
}

func kernelRelease() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(release))
}

func powerOff() {
	syscall.Sync()
	err := syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	console("power off: %v", err) // and process 1 must not return, or the kernel panics
	select {}
}

// Network namespaces by name, as iproute2 has them (ip-netns(8)): a namespace stays as long as its file is mounted.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// netns is the path of a network namespace; empty, it is that of this process.
type netns string

// podns is where images have the pod's network and its processes. The forwarder stays outside.
const podns netns = "/run/netns/podns"

// Go's syscall package has no setns(2), and not on all machines its number.
var setnsNumber = map[string]uintptr{"amd64": 308, "arm64": 268, "s390x": 339}[runtime.GOARCH]

// make makes the namespace, with its loopback interface up.
func (n netns) make() error {
	if err := os.MkdirAll(filepath.Dir(string(n)), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(string(n), nil, 0o600); err != nil {
		return err
	}
	return onThreadOfItsOwn(func() error {
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := syscall.Mount("/proc/thread-self/ns/net", string(n), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount a network namespace on %s: %w", n, err)
		}
		return bringUp("lo")
	})
}

// do runs f with the namespace as that of its thread: sockets and children that f makes are in it.
func (n netns) do(f func() error) error {
	if n == "" {
		return f()
	}
	namespace, err := os.Open(string(n))
	if err != nil {
		return err
	}
	defer namespace.Close()
	return onThreadOfItsOwn(func() error {
		if _, _, errno := syscall.RawSyscall(setnsNumber, namespace.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
			return fmt.Errorf("enter the network namespace %s: %w", n, errno)
		}
		return f()
	})
}

// onThreadOfItsOwn gives f a thread that ends with it, so that nothing else runs in a namespace that it has entered.
func onThreadOfItsOwn(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // a goroutine that ends locked takes its thread with it
		done <- f()
	}()
	return <-done
}

// Network namespaces by name, like in iproute2 (ip-netns(8)): a namespace exists as long as its file is mounted.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// netns is the path of a network namespace; empty means that of this process.
type netns string

// podns is the namespace for the network and the processes of the pod, as in pod VM images. The forwarder is outside.
const podns netns = "/run/netns/podns"

// The syscall package of Go has no setns(2), and lacks its number on some machines.
var setnsNumber = map[string]uintptr{"amd64": 308, "arm64": 268, "s390x": 339}[runtime.GOARCH]

// make creates the namespace, with its loopback interface up.
func (n netns) make() error {
	if err := os.MkdirAll(filepath.Dir(string(n)), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(string(n), nil, 0o600); err != nil {
		return err
	}
	return onOwnThread(func() error {
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := syscall.Mount("/proc/thread-self/ns/net", string(n), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount a network namespace on %s: %w", n, err)
		}
		return bringUp("lo")
	})
}

// do runs f on a thread in the namespace: sockets and children that f creates are in it.
func (n netns) do(f func() error) error {
	if n == "" {
		return f()
	}
	namespace, err := os.Open(string(n))
	if err != nil {
		return err
	}
	defer namespace.Close()
	return onOwnThread(func() error {
		if _, _, errno := syscall.RawSyscall(setnsNumber, namespace.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
			return fmt.Errorf("enter the network namespace %s: %w", n, errno)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that ends with it, so that no other code runs in a namespace that f has entered.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // a locked goroutine ends its thread
		done <- f()
	}()
	return <-done
}

// The guest of the lab: process 1 of a small s390x virtual machine that replaces a pod VM image.
//
// It runs the stages of a real image in their order (cloud-init disk, DHCP, forwarder, agent) and prints a line on the
// console for each. If one fails, it prints the reason and powers the machine off. README.md lists the limits.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"time"
)

const forwarderPort = 15150

// untilRead is the delay before a deliberate end of the guest, because the reader may still be opening the console.
const untilRead = 5 * time.Second

// init reserves the first thread of the process for main: this thread must not end, and /proc/1 shows it (see
// netns.do).
func init() { runtime.LockOSThread() }

func main() {
	if os.Getpid() != 1 {
		if len(os.Args) == 3 && os.Args[1] == "serve" {
			fmt.Fprintln(os.Stderr, serve(os.Args[2]))
			os.Exit(1)
		}
		fmt.Fprintln(os.Stderr, "guest: this is the /init of a virtual machine; as a command it knows: serve PORT")
		os.Exit(2)
	}
	if err := boot(); err != nil {
		console("failed: %v", err)
		console("powering off")
		powerOff()
	}
}

// boot returns only when a stage fails.
func boot() error {
	if err := mountKernelFilesystems(); err != nil {
		return err
	}
	lab, err := labOptions()
	if err != nil {
		return err
	}
	console("init runs, %s", kernelRelease())
	if err := loadModules("/lib/modules"); err != nil {
		return err
	}

	seed, err := readCidata(60 * time.Second)
	if err != nil {
		return err
	}
	if err := seed.writeFiles(); err != nil {
		return err
	}
	config, err := loadForwarderConfig()
	if err != nil {
		return err
	}
	console("cidata read for %s, pod %s/%s, %d files", seed.hostname, config.PodNamespace, config.PodName, len(seed.files))

	if lab["nodhcp"] {
		console("caa.lab=nodhcp: never asks for an address")
		sleepForEver()
	}
	if err := bringUp("lo"); err != nil {
		return err
	}
	lease, err := configureByDHCP("eth0", seed.hostname, 60*time.Second)
	if err != nil {
		return err
	}
	console("eth0 has %s from %s", lease.prefix, lease.server)

	switch {
	case lab["panic"]:
		time.Sleep(untilRead)
		console("caa.lab=panic: crashing the kernel")
		if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
			return err
		}
	case lab["poweroff"]:
		time.Sleep(untilRead)
		console("caa.lab=poweroff: leaving")
		powerOff()
	case lab["nolisten"]:
		console("caa.lab=nolisten: never listens")
		sleepForEver()
	case lab["slow"]:
		console("caa.lab=slow: listens in 10 s")
		time.Sleep(10 * time.Second)
	}

	if err := config.PodNetwork.setUp(podns); err != nil {
		return fmt.Errorf("pod network: %w", err)
	}
	tlsConfig, err := config.serverTLS()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", forwarderPort))
	if err != nil {
		return err
	}
	reaper := newReaper(podns)
	go reaper.run()
	agent := newAgent(reaper)
	console("listening on port %d", forwarderPort)
	return serveTLS(listener, tlsConfig, agent.services())
}

// sleepForEver is not `select {}`: without another goroutine, the runtime reports a deadlock; then init ends and the
// kernel panics.
func sleepForEver() {
	for {
		time.Sleep(time.Hour)
	}
}

// console prints one line with the uptime of the machine. It never prints contents of files, only their names: the
// console is readable on the host.
func console(format string, arguments ...any) {
	uptime, _ := os.ReadFile("/proc/uptime")
	seconds, _, _ := strings.Cut(string(uptime), " ")
	fmt.Printf("[%8s] guest: %s\n", seconds, fmt.Sprintf(format, arguments...))
}

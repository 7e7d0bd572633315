// Processes of the guest: process 1 starts and reaps them, and buffers their output until it is read.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// reaper is the only code that waits for children. Process 1 also inherits orphans, and waiting in os/exec would race
// with that.
type reaper struct {
	netns    netns      // namespace of children
	mu       sync.Mutex // held during fork, so that no child is reaped before it is known
	children map[int]func(syscall.WaitStatus)
}

func newReaper(where netns) *reaper {
	return &reaper{netns: where, children: map[int]func(syscall.WaitStatus){}}
}

func (r *reaper) run() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	for range signals {
		r.reap()
	}
}

func (r *reaper) reap() {
	for {
		r.mu.Lock()
		var state syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &state, syscall.WNOHANG, nil)
		exited := r.children[pid]
		delete(r.children, pid)
		r.mu.Unlock()
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if exited != nil {
			exited(state)
		}
	}
}

func (r *reaper) start(program string, arguments []string, attributes *syscall.ProcAttr, exited func(syscall.WaitStatus)) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid := 0
	err := r.netns.do(func() (err error) {
		pid, err = syscall.ForkExec(program, arguments, attributes)
		return err
	})
	if err == nil {
		r.children[pid] = exited
	}
	return pid, err
}

// signal is sent to the process group of a child, and to no process once it is reaped: its id may be reused by then.
func (r *reaper) signal(pid int, number syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[pid] == nil {
		return syscall.ESRCH
	}
	return syscall.Kill(-pid, number)
}

type processSpec struct {
	arguments, environment []string
	directory              string
	uid, gid               uint32
	terminal               bool
}

type process struct {
	spec           processSpec
	stdin          *os.File
	stdout, stderr *stream
	terminal       *os.File    // the controlling end if there is a terminal: stdin is the same
	theirs         [3]*os.File // standard input, output and error of the process; closed here after its start

	mu       sync.Mutex // guards pid and the start
	pid      int
	exited   chan struct{}
	exitCode int // valid once exited is closed
}

func newProcess(spec processSpec) (*process, error) {
	if len(spec.arguments) == 0 {
		return nil, errors.New("the process has no arguments")
	}
	p := &process{spec: spec, exited: make(chan struct{})}
	if spec.terminal {
		controller, terminal, err := openTerminal()
		if err != nil {
			return nil, err
		}
		p.terminal, p.stdin = controller, controller
		p.stdout = newStream(controller)
		p.stderr = p.stdout
		p.theirs = [3]*os.File{terminal, terminal, terminal}
		return p, nil
	}
	var ours [3]*os.File
	for i := range ours {
		reading, writing, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		if ours[i], p.theirs[i] = reading, writing; i == 0 {
			ours[i], p.theirs[i] = writing, reading
		}
	}
	p.stdin, p.stdout, p.stderr = ours[0], newStream(ours[1]), newStream(ours[2])
	return p, nil
}

func (p *process) start(r *reaper) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid != 0 {
		return errors.New("the process was started already")
	}
	program, err := lookUp(p.spec.arguments[0], p.spec.environment)
	if err != nil {
		return err
	}
	attributes := &syscall.ProcAttr{
		Dir:   p.spec.directory,
		Env:   p.spec.environment,
		Files: []uintptr{p.theirs[0].Fd(), p.theirs[1].Fd(), p.theirs[2].Fd()},
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Setctty:    p.spec.terminal,
			Credential: &syscall.Credential{Uid: p.spec.uid, Gid: p.spec.gid},
		},
	}
	p.pid, err = r.start(program, p.spec.arguments, attributes, func(state syscall.WaitStatus) {
		p.exitCode = state.ExitStatus()
		if state.Signaled() {
			p.exitCode = 128 + int(state.Signal())
		}
		close(p.exited)
	})
	for _, file := range p.theirs {
		file.Close()
	}
	return err
}

func (p *process) signal(r *reaper, number syscall.Signal) error {
	p.mu.Lock()
	pid := p.pid
	p.mu.Unlock()
	if pid == 0 {
		return syscall.ESRCH
	}
	return r.signal(pid, number)
}

func (p *process) isRunning() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.exited:
		return false
	default:
		return p.pid != 0
	}
}

// close closes the pipes; a waiting reader gets the end.
func (p *process) close() {
	p.stdin.Close()
	p.stdout.close()
	p.stderr.close()
	for _, file := range p.theirs {
		file.Close()
	}
}

func lookUp(name string, environment []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := "/usr/sbin:/usr/bin:/sbin:/bin"
	for _, variable := range environment {
		if key, value, _ := strings.Cut(variable, "="); key == "PATH" {
			path = value
		}
	}
	for _, directory := range filepath.SplitList(path) {
		program := filepath.Join(directory, name)
		if info, err := os.Stat(program); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return program, nil
		}
	}
	return "", &os.PathError{Op: "exec", Path: name, Err: syscall.ENOENT}
}

const (
	streamBuffer = 64 << 10 // the size of a pipe; a process that writes more waits for its reader
	maxRead      = 1 << 20
)

// stream buffers output. An aborted read (its connection broke) consumes nothing.
type stream struct {
	source *os.File

	mu       sync.Mutex
	buffered []byte
	ended    bool
	changed  chan struct{} // closed and replaced at every change
}

func newStream(source *os.File) *stream {
	s := &stream{source: source, changed: make(chan struct{})}
	go s.pump()
	return s
}

func (s *stream) pump() {
	chunk := make([]byte, 16<<10)
	for {
		n, err := s.source.Read(chunk)
		s.mu.Lock()
		s.buffered = append(s.buffered, chunk[:n]...)
		s.ended = err != nil // a terminal ends with EIO rather than EOF
		s.change()
		for !s.ended && len(s.buffered) >= streamBuffer {
			changed := s.changed
			s.mu.Unlock()
			<-changed
			s.mu.Lock()
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *stream) close() {
	s.source.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buffered = nil // which wakes a pump that waits for space
	s.change()
}

func (s *stream) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// read waits for output and returns at most `limit` bytes of it, or io.EOF at the end.
func (s *stream) read(ctx context.Context, limit int) ([]byte, error) {
	for {
		s.mu.Lock()
		n := min(min(limit, maxRead), len(s.buffered))
		if n > 0 {
			data := append([]byte(nil), s.buffered[:n]...)
			s.buffered = s.buffered[n:]
			s.change()
			s.mu.Unlock()
			return data, nil
		}
		ended, changed := s.ended, s.changed
		s.mu.Unlock()
		if ended {
			return nil, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func runningReaper() *reaper {
	r := newReaper("")
	go r.run()
	return r
}

// One for all tests: two reapers would take the children of each other.
var testReaper = runningReaper()

func startProcess(t *testing.T, arguments ...string) *process {
	t.Helper()
	p, err := newProcess(processSpec{arguments: arguments, directory: "/"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	if err := p.start(testReaper); err != nil {
		t.Fatal(err)
	}
	return p
}

func readAll(t *testing.T, s *stream) string {
	t.Helper()
	var all strings.Builder
	for {
		data, err := s.read(context.Background(), 1000)
		if errors.Is(err, io.EOF) {
			return all.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
}

func TestExitCodesOfManyProcessesAtOnce(t *testing.T) {
	var all sync.WaitGroup
	for i := 0; i < 50; i++ {
		i := i
		all.Add(1)
		go func() {
			defer all.Done()
			p := startProcess(t, "sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i))
			if output := readAll(t, p.stdout); output != fmt.Sprintf("%d\n", i) {
				t.Errorf("process %d wrote %q", i, output)
			}
			if <-p.exited; p.exitCode != i {
				t.Errorf("process %d ended with %d", i, p.exitCode)
			}
		}()
	}
	all.Wait()
}

func TestSignalsReachTheWholeGroup(t *testing.T) {
	p := startProcess(t, "sh", "-c", "sleep 1000 & echo started; wait")
	if data, err := p.stdout.read(context.Background(), 100); string(data) != "started\n" {
		t.Fatalf("%q, %v", data, err)
	}
	if err := p.signal(testReaper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if p.exitCode != 137 {
		t.Errorf("ended with %d", p.exitCode)
	}
	readAll(t, p.stdout) // ends when all writers have closed the pipe
	if err := p.signal(testReaper, syscall.SIGKILL); err != syscall.ESRCH {
		t.Errorf("a signal for a process that is gone: %v", err)
	}
}

func TestAReadThatIsGivenUpTakesNothing(t *testing.T) {
	p := startProcess(t, "cat")
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, err := p.stdout.read(ctx, 100); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v", err)
	}
	p.stdin.Write([]byte("kept"))
	p.stdin.Close()
	if output := readAll(t, p.stdout); output != "kept" {
		t.Errorf("%q", output)
	}
}

func TestOutputWaitsForItsReader(t *testing.T) {
	p := startProcess(t, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done")
	if output := readAll(t, p.stdout); len(output) != 220000 {
		t.Errorf("%d bytes", len(output))
	}
}

func TestATerminalEndsWithItsProcess(t *testing.T) {
	p, err := newProcess(processSpec{arguments: []string{"sh", "-c", "test -t 0 && echo yes"}, directory: "/", terminal: true})
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer p.close()
	if err := p.start(testReaper); err != nil {
		t.Fatal(err)
	}
	if output := readAll(t, p.stdout); output != "yes\r\n" {
		t.Errorf("%q", output)
	}
}

func TestWhatCannotBeStarted(t *testing.T) {
	for _, arguments := range [][]string{{"no-such-program"}, {"/no/such/program"}, {"/etc/passwd"}} {
		p, err := newProcess(processSpec{arguments: arguments, directory: "/"})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.start(testReaper); err == nil {
			t.Errorf("%v was started", arguments)
		}
		if p.isRunning() {
			t.Errorf("%v runs", arguments)
		}
		p.close()
	}
	if _, err := newProcess(processSpec{}); err == nil {
		t.Error("a process without arguments was made")
	}
}

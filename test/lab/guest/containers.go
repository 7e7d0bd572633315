// The calls of the agent API for containers and their processes.
package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// In the spelling of the original.
var (
	errNoContainer = errors.New("Invalid container id")
	errNoProcess   = errors.New("Invalid exec id")
)

type container struct {
	first     *process
	processes map[string]*process // by exec id; that of the first process is the id of the container
}

func (a *agent) createContainer(_ context.Context, request message) ([]byte, error) {
	id := request.text(1)
	spec, err := decodeMessage(request.bytes(6))
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers[id] != nil {
		return nil, fmt.Errorf("container %s exists already", id)
	}
	first, err := decodeProcess(spec.bytes(2))
	if err != nil {
		return nil, err
	}
	a.containers[id] = &container{first, map[string]*process{id: first}}
	return nil, nil
}

func (a *agent) startContainer(_ context.Context, request message) ([]byte, error) {
	p, err := a.find(request.text(1), "")
	if err != nil {
		return nil, err
	}
	return nil, p.start(a.reaper)
}

func (a *agent) execProcess(_ context.Context, request message) ([]byte, error) {
	containerID, execID := request.text(1), request.text(2)
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[containerID]
	switch {
	case c == nil:
		return nil, errNoContainer
	case !c.first.isRunning():
		return nil, fmt.Errorf("container %s is not running", containerID)
	case execID == "":
		return nil, errors.New("the exec id is empty")
	case c.processes[execID] != nil:
		return nil, fmt.Errorf("exec id %s exists already", execID)
	}
	p, err := decodeProcess(request.bytes(4))
	if err != nil {
		return nil, err
	}
	if err := p.start(a.reaper); err != nil {
		p.close()
		return nil, err
	}
	c.processes[execID] = p
	return nil, nil
}

func (a *agent) signalProcess(_ context.Context, request message) ([]byte, error) {
	p, err := a.find(request.text(1), request.text(2))
	if err != nil {
		return nil, err
	}
	if err := p.signal(a.reaper, syscall.Signal(request.number(3))); err != nil && err != syscall.ESRCH {
		return nil, err
	}
	return nil, nil
}

// waitProcess may be called again, unlike in the original: a process that has ended is kept until its container is
// removed.
func (a *agent) waitProcess(ctx context.Context, request message) ([]byte, error) {
	p, err := a.find(request.text(1), request.text(2))
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
		var response encoder
		response.number(1, uint64(p.exitCode))
		return response, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *agent) removeContainer(ctx context.Context, request message) ([]byte, error) {
	id := request.text(1)
	a.mu.Lock()
	c := a.containers[id]
	var processes []*process
	if c != nil {
		processes = c.all()
	}
	a.mu.Unlock()
	if c == nil {
		return nil, errNoContainer
	}
	if seconds := request.number(2); seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	if err := a.end(ctx, processes); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.containers, id)
	return nil, nil
}

func (c *container) all() []*process {
	var processes []*process
	for _, p := range c.processes {
		processes = append(processes, p)
	}
	return processes
}

// end kills all processes, waits until they have ended, and closes all streams.
func (a *agent) end(ctx context.Context, processes []*process) error {
	for _, p := range processes {
		if p.signal(a.reaper, syscall.SIGKILL) == nil {
			select {
			case <-p.exited:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		p.close()
	}
	return nil
}

// find returns a process of a container: the first one for an empty exec id.
func (a *agent) find(containerID, execID string) (*process, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[containerID]
	if c == nil {
		return nil, errNoContainer
	}
	if execID == "" {
		return c.first, nil
	}
	if p := c.processes[execID]; p != nil {
		return p, nil
	}
	return nil, errNoProcess
}

// decodeProcess reads the command, the environment, the directory and the user of an OCI process, and ignores the rest.
func decodeProcess(wire []byte) (*process, error) {
	oci, err := decodeMessage(wire)
	if err != nil {
		return nil, err
	}
	user, err := decodeMessage(oci.bytes(3))
	if err != nil {
		return nil, err
	}
	spec := processSpec{
		terminal:    oci.number(1) != 0,
		uid:         uint32(user.number(1)),
		gid:         uint32(user.number(2)),
		arguments:   oci.texts(4),
		environment: oci.texts(5),
		directory:   oci.text(6),
	}
	if spec.directory == "" {
		spec.directory = "/"
	}
	return newProcess(spec)
}

// Pseudo-terminals (pty(7)).
package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// openTerminal returns the controlling end and the terminal itself.
func openTerminal() (controller, terminal *os.File, err error) {
	controller, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	var number, unlocked int32
	if err = ioctl(controller, syscall.TIOCGPTN, unsafe.Pointer(&number)); err == nil {
		err = ioctl(controller, syscall.TIOCSPTLCK, unsafe.Pointer(&unlocked))
	}
	if err == nil {
		terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		controller.Close()
		return nil, nil, err
	}
	return controller, terminal, nil
}

func resizeTerminal(controller *os.File, rows, columns uint16) error {
	size := [4]uint16{rows, columns}
	return ioctl(controller, syscall.TIOCSWINSZ, unsafe.Pointer(&size))
}

// ioctl uses SyscallConn, because File.Fd would make the file blocking, and closing it would not wake its reader.
func ioctl(file *os.File, request uintptr, argument unsafe.Pointer) error {
	connection, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var errno syscall.Errno
	if err := connection.Control(func(descriptor uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, descriptor, request, uintptr(argument))
	}); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}

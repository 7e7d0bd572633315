/** The part of a libvirt session that pod VMs need. */
import type {LibvirtSession} from '../libvirt/session.ts';

/** A part of `LibvirtSession`, which fits without an adapter. */
export type LibvirtCalls = Pick<LibvirtSession, 'call' | 'upload' | 'download' | 'onLifecycle' | 'onState' | 'console'>;

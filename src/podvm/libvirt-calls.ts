/** The part of a libvirt session that pod VMs need. */
import type {LibvirtSession} from '../libvirt/session.ts';

/** What `LibvirtSession` has, so that it fits as it is. */
export type LibvirtCalls = Pick<LibvirtSession, 'call' | 'upload' | 'download' | 'onLifecycle' | 'onState' | 'console'>;

/** Events of the tunnels for the observer. */

/** The nftables table of this node was checked and repaired. */
export interface NetworkEvent {
	readonly kind: 'tunnels-guarded';
	/** Packets that it dropped since it was created, because they were not from the VM of the tunnel. */
	readonly dropped: number;
}
